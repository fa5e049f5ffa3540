// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/work_folder.h"

#include <filesystem>
#include <fstream>
#include <set>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "tests/testing/temp_dir.h"

namespace nibble::quantize {
namespace {

namespace fs = std::filesystem;
using nibble::testing::Slurp;
using nibble::testing::TempDir;
using ::testing::HasSubstr;
using Json = nlohmann::ordered_json;

const Json kRun = {{"method", "gptq"}, {"group size", "128"}};

std::string Message(const absl::StatusOr<WorkFolder>& folder) {
  return std::string(folder.status().message());
}

void Write(const std::string& path, std::string_view content) {
  std::ofstream(path, std::ios::binary) << content;
}

TEST(WorkFolderTest, WithoutWorkNothingIsLeft) {
  const TempDir dir;
  {
    const auto folder = WorkFolder::Open(dir.File("a/out"), kRun, {});
    ASSERT_TRUE(folder.ok()) << folder.status();
    EXPECT_TRUE(fs::exists(dir.File("a/out.partial/run.json")));
  }
  EXPECT_FALSE(fs::exists(dir.File("a/out.partial")));
}

TEST(WorkFolderTest, LayersStayAndOutputAppearsWhole) {
  const TempDir dir;
  const std::string out = dir.File("out");
  {
    auto folder = WorkFolder::Open(out, kRun, {});
    ASSERT_TRUE(folder.ok()) << folder.status();
    Write(*folder->BeginLayer() + "/tensors", "1");
    ASSERT_TRUE(folder->FinishLayer(0).ok());
    Write(*folder->BeginLayer() + "/tensors", "half");  // killed while layer 1 was written
    EXPECT_FALSE(folder->HasLayer(1));
  }
  auto folder = WorkFolder::Open(out, kRun, {});
  ASSERT_TRUE(folder.ok()) << folder.status();
  EXPECT_TRUE(folder->HasLayer(0));
  EXPECT_FALSE(folder->HasLayer(1));
  EXPECT_EQ(Slurp(folder->LayerPath(0) + "/tensors"), "1");
  EXPECT_TRUE(fs::is_empty(*folder->BeginLayer()));
  Write(*folder->BeginOutput() + "/left from before", "");
  const std::string made = *folder->BeginOutput();
  EXPECT_TRUE(fs::is_empty(made));
  Write(made + "/config.json", "{}");
  EXPECT_FALSE(fs::exists(out));
  ASSERT_TRUE(folder->Commit().ok());
  EXPECT_EQ(Slurp(out + "/config.json"), "{}");
  EXPECT_FALSE(fs::exists(out + ".partial"));
}

TEST(WorkFolderTest, RelativeNames) {
  const TempDir dir;
  const fs::path before = fs::current_path();
  fs::current_path(dir.path());
  {
    auto folder = WorkFolder::Open("out", kRun, {});
    ASSERT_TRUE(folder.ok()) << folder.status();
    Write(*folder->BeginOutput() + "/config.json", "{}");
    EXPECT_TRUE(folder->Commit().ok());
  }
  fs::current_path(before);
  EXPECT_TRUE(fs::exists(dir.File("out/config.json")));
}

TEST(WorkFolderTest, OneRunAtATime) {
  const TempDir dir;
  auto first = WorkFolder::Open(dir.File("out"), kRun, {});
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = WorkFolder::Open(dir.File("out"), kRun, {.restart = true});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(second), HasSubstr("another run is at work here"));
  EXPECT_TRUE(fs::exists(dir.File("out.partial/run.json")));
}

TEST(WorkFolderTest, OtherOptionsAreRefusedByName) {
  const TempDir dir;
  {
    auto folder = WorkFolder::Open(dir.File("out"), kRun, {});
    ASSERT_TRUE(folder.ok() && folder->BeginLayer().ok() && folder->FinishLayer(0).ok());
  }
  const Json other = {{"method", "awq,gptq"}, {"group size", "128"}, {"seed", 3}};
  const auto refused = WorkFolder::Open(dir.File("out"), other, {});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(refused),
              HasSubstr("method is \"awq,gptq\", was \"gptq\"; seed is 3, was not there"));
  EXPECT_THAT(Message(refused), HasSubstr("--restart"));
  EXPECT_TRUE(fs::exists(dir.File("out.partial/layers/00000"))) << "a refusal discards nothing";
  const auto restarted = WorkFolder::Open(dir.File("out"), other, {.restart = true});
  ASSERT_TRUE(restarted.ok()) << restarted.status();
  EXPECT_FALSE(restarted->HasLayer(0));
}

TEST(WorkFolderTest, FoldersOfOthersAreLeftAlone) {
  const TempDir dir;
  fs::create_directory(dir.File("out.partial"));
  dir.Write("out.partial/notes.txt", "mine");
  for (const bool restart : {false, true}) {
    const auto folder = WorkFolder::Open(dir.File("out"), kRun, {.restart = restart});
    EXPECT_EQ(folder.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(Message(folder), HasSubstr("holds 'notes.txt'"));
  }
  EXPECT_EQ(Slurp(dir.File("out.partial/notes.txt")), "mine");
  dir.Write("file.partial", "mine");
  EXPECT_THAT(Message(WorkFolder::Open(dir.File("file"), kRun, {})), HasSubstr("in the way"));
}

TEST(WorkFolderTest, ReplacesAModelOnly) {
  const TempDir dir;
  const std::string out = dir.File("out");
  fs::create_directory(out);
  dir.Write("out/other", "mine");
  EXPECT_EQ(WorkFolder::Open(out, kRun, {}).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(Message(WorkFolder::Open(out, kRun, {.overwrite = true})),
              HasSubstr("no config.json"));
  dir.Write("out/config.json", "old");
  auto folder = WorkFolder::Open(out, kRun, {.overwrite = true});
  ASSERT_TRUE(folder.ok()) << folder.status();
  Write(*folder->BeginOutput() + "/config.json", "new");
  EXPECT_EQ(Slurp(out + "/config.json"), "old");
  ASSERT_TRUE(folder->Commit().ok());
  EXPECT_EQ(Slurp(out + "/config.json"), "new");
  EXPECT_FALSE(fs::exists(out + "/other"));
  EXPECT_FALSE(fs::exists(out + ".partial"));
}

TEST(WorkFolderTest, WhatCameToTheOutputMeanwhileStays) {
  const TempDir dir;
  const std::string out = dir.File("out");
  for (const bool overwrite : {false, true}) {
    auto folder = WorkFolder::Open(out, kRun, {.overwrite = overwrite});
    ASSERT_TRUE(folder.ok()) << folder.status();
    Write(*folder->BeginOutput() + "/config.json", "new");
    fs::create_directory(out);
    Write(out + "/notes", "mine");
    EXPECT_EQ(folder->Commit().code(), absl::StatusCode::kAlreadyExists);
    EXPECT_EQ(Slurp(out + "/notes"), "mine");
    EXPECT_FALSE(fs::exists(out + "/config.json"));
    fs::remove_all(out);
  }
  auto folder = WorkFolder::Open(out, kRun, {});
  ASSERT_TRUE(folder.ok()) << folder.status();
  Write(*folder->BeginOutput() + "/config.json", "new");
  fs::create_directory(out);
  Write(out + "/config.json", "another model");
  EXPECT_EQ(folder->Commit().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(Slurp(out + "/config.json"), "another model");
}

// As a run leaves it that is killed when the old output has moved away and the new has not come.
TEST(WorkFolderTest, AnInterruptedReplacementIsUndone) {
  for (const WorkFolderOptions options : {WorkFolderOptions{}, WorkFolderOptions{.overwrite = true},
                                          WorkFolderOptions{.overwrite = true, .restart = true},
                                          WorkFolderOptions{.restart = true}}) {
    const TempDir dir;
    const std::string out = dir.File("out");
    {
      auto folder = WorkFolder::Open(out, kRun, {});
      ASSERT_TRUE(folder.ok() && folder->BeginLayer().ok() && folder->FinishLayer(0).ok());
      Write(*folder->BeginOutput() + "/config.json", "new");
    }
    fs::create_directory(out + ".partial/replaced");
    Write(out + ".partial/replaced/config.json", "old");
    auto folder = WorkFolder::Open(out, kRun, options);
    EXPECT_EQ(Slurp(out + "/config.json"), "old");
    EXPECT_TRUE(fs::exists(out + ".partial/run.json"));
    if (!options.overwrite) {
      EXPECT_EQ(folder.status().code(), absl::StatusCode::kAlreadyExists);
      EXPECT_TRUE(fs::exists(out + ".partial/layers/00000")) << "a refusal discards nothing";
      continue;
    }
    ASSERT_TRUE(folder.ok()) << folder.status();
    EXPECT_EQ(folder->HasLayer(0), !options.restart);
    Write(*folder->BeginOutput() + "/config.json", "newer");
    ASSERT_TRUE(folder->Commit().ok());
    EXPECT_EQ(Slurp(out + "/config.json"), "newer");
    EXPECT_FALSE(fs::exists(out + ".partial"));
  }
}

// Names alone prove nothing: 'output' and 'layers' may be anybody's.
TEST(WorkFolderTest, FoldersWithoutADescriptionAreLeftAlone) {
  const TempDir dir;
  fs::create_directories(dir.File("out.partial/output"));
  dir.Write("out.partial/output/thesis.txt", "mine");
  for (const bool restart : {false, true}) {
    const auto folder = WorkFolder::Open(dir.File("out"), kRun, {.restart = restart});
    EXPECT_EQ(folder.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(Message(folder), HasSubstr("holds 'output' and no run.json"));
  }
  EXPECT_EQ(Slurp(dir.File("out.partial/output/thesis.txt")), "mine");
  // A run that was killed before it wrote anything.
  fs::create_directory(dir.File("other.partial"));
  dir.Write("other.partial/lock", "");
  dir.Write("other.partial/run.json.tmp", "{");
  EXPECT_TRUE(WorkFolder::Open(dir.File("other"), kRun, {}).ok());
}

TEST(WorkFolderTest, DamagedDescriptionsAreNamed) {
  const TempDir dir;
  fs::create_directory(dir.File("out.partial"));
  dir.Write("out.partial/run.json", "{");
  EXPECT_THAT(Message(WorkFolder::Open(dir.File("out"), kRun, {})), HasSubstr("run.json"));
  EXPECT_TRUE(WorkFolder::Open(dir.File("out"), kRun, {.restart = true}).ok());
}

}  // namespace
}  // namespace nibble::quantize
