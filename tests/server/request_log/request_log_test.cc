// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/request_log/request_log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <sstream>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/json.h"
#include "server/request_log/request_id.h"
#include "tests/testing/temp_dir.h"

namespace nibble::server {
namespace {

using nibble::testing::Slurp;
using nlohmann::json;

bool Eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 2000; ++i) {
    if (condition()) return true;
    ::usleep(5000);
  }
  return false;
}

std::vector<json> Lines(const std::string& path) {
  std::vector<json> lines;
  std::istringstream text(Slurp(path));
  for (std::string line; std::getline(text, line);) {
    const auto parsed = ParseJson(line);
    EXPECT_TRUE(parsed.ok()) << line;
    lines.push_back(parsed.ok() ? *parsed : json());
  }
  return lines;
}

RequestRecord Record(const std::string& id) {
  RequestRecord record{.protocol = "http",
                       .request_id = id,
                       .route = "/v1/completions",
                       .method = "POST",
                       .status = 200,
                       .peer = "127.0.0.1:9",
                       .e2e_seconds = 1.5};
  record.facts = {.model = "m",
                  .sampling = R"({"temperature":0.5})",
                  .stream = true,
                  .num_choices = 1,
                  .num_prompt_tokens = 3,
                  .num_cached_tokens = 2,
                  .num_output_tokens = 7,
                  .finish_reasons = {"stop"},
                  .queue_seconds = 0.25,
                  .first_token_seconds = 0.5,
                  .prompt = "secret prompt",
                  .output = "secret output"};
  return record;
}

TEST(RequestRecord, IsOneLineOfJson) {
  RequestRecord record = Record("id");
  record.end = std::chrono::system_clock::time_point(std::chrono::milliseconds(1'000'000'000'123));
  const json line = *ParseJson(FormatRecord(record, false));
  EXPECT_EQ(line["time"], "2001-09-09T01:46:40.123Z");
  EXPECT_EQ(line["request_id"], "id");
  EXPECT_EQ(line["status"], 200);
  EXPECT_EQ(line["model"], "m");
  EXPECT_EQ(line["prompt_tokens"], 3);
  EXPECT_EQ(line["output_tokens"], 7);
  EXPECT_EQ(line["finish_reasons"], json::array({"stop"}));
  EXPECT_EQ(line["queue_seconds"], 0.25);
  EXPECT_EQ(line["ttft_seconds"], 0.5);
  EXPECT_EQ(line["e2e_seconds"], 1.5);
  EXPECT_EQ(line["sampling"]["temperature"], 0.5);
  EXPECT_FALSE(line.contains("prompt"));
  EXPECT_FALSE(line.contains("output"));
  EXPECT_EQ((*ParseJson(FormatRecord(record, true)))["prompt"], "secret prompt");
}

TEST(RequestRecord, TakesAnyBytes) {
  RequestRecord record = Record("\"\n\x01\xff");
  record.route = std::string("/\0x\r\n", 5);
  record.facts.output = "\xc3";
  const std::string line = FormatRecord(record, true);
  EXPECT_EQ(line.find('\n'), std::string::npos);
  EXPECT_TRUE(ParseJson(line).ok()) << line;
  const json refused = *ParseJson(
      FormatRecord({.protocol = "grpc", .request_id = "i", .route = "/x", .status = 16}, false));
  EXPECT_EQ(refused["code"], "UNAUTHENTICATED");
  EXPECT_FALSE(refused.contains("model"));
}

TEST(RequestLog, WritesAllAtItsEnd) {
  const nibble::testing::TempDir folder;
  const std::string path = folder.File("log");
  {
    const auto log = *RequestLog::Open({.path = path});
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&log] {
        for (int i = 0; i < 100; ++i) log->Add(Record(std::to_string(i)));
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  EXPECT_EQ(Lines(path).size(), 400U);
  EXPECT_THAT(Slurp(path), ::testing::Not(::testing::HasSubstr("secret")));
  {
    const auto again = *RequestLog::Open({.path = path});
    again->Add(Record("last"));
  }
  EXPECT_EQ(Lines(path).size(), 401U);  // appended
}

TEST(RequestLog, FollowsItsNameWhenTheFileIsMoved) {
  const nibble::testing::TempDir folder;
  const std::string path = folder.File("log");
  const auto log = *RequestLog::Open({.path = path, .period = std::chrono::milliseconds(5)});
  log->Add(Record("first"));
  ASSERT_TRUE(Eventually([&] { return Slurp(path).ends_with("\n"); }));
  std::filesystem::rename(path, path + ".1");
  ASSERT_TRUE(Eventually([&] { return std::filesystem::exists(path); }));
  log->Add(Record("second"));
  ASSERT_TRUE(Eventually([&] { return Slurp(path).ends_with("\n"); }));
  EXPECT_EQ(Lines(path + ".1").size(), 1U);
  EXPECT_EQ(Lines(path)[0]["request_id"], "second");
  log->Reopen();  // harmless where nothing moved
  log->Add(Record("third"));
  EXPECT_TRUE(Eventually([&] { return Slurp(path).find("third") != std::string::npos; }));
}

TEST(RequestLog, LosesAndCountsWhatDoesNotFit) {
  const nibble::testing::TempDir folder;
  const std::string path = folder.File("pipe");
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  const int reader = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  ASSERT_GE(reader, 0);
  {
    const auto log = *RequestLog::Open({.path = path, .max_queued_bytes = 20'000});
    RequestRecord large = Record("large");
    large.facts.finish_reasons.assign(200, "stop");
    // Nobody reads: the pipe takes 64 KiB, the queue its bytes, and Add never waits.
    for (int i = 0; i < 1000; ++i) log->Add(large);
    EXPECT_TRUE(Eventually([&] { return log->num_dropped() > 0; }));
    const int64_t dropped = log->num_dropped();
    // Once somebody reads, the loss is told.
    std::string text;
    EXPECT_TRUE(Eventually([&] {
      char bytes[65536];
      const ssize_t size = ::read(reader, bytes, sizeof bytes);
      if (size > 0) text.append(bytes, static_cast<size_t>(size));
      return text.find("{\"event\":\"dropped\",\"lines\":") != std::string::npos;
    }));
    EXPECT_GE(log->num_dropped(), dropped);
  }
  ::close(reader);
}

TEST(RequestLog, AReaderThatStandsStillHoldsTheEndUpForABoundedTime) {
  const nibble::testing::TempDir folder;
  const std::string path = folder.File("pipe");
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  const int reader = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  ASSERT_GE(reader, 0);
  {
    // The pipe takes some hundred. Were each of the others waited for, if only for a tenth of a
    // second, the end would take half an hour.
    const auto log =
        *RequestLog::Open({.path = path, .last_writes = std::chrono::milliseconds(50)});
    for (int i = 0; i < 20'000; ++i) log->Add(Record(std::string(200, 'x')));
  }
  ::close(reader);
}

TEST(RequestLog, AFileGetsAllAfterThatTimeToo) {
  const nibble::testing::TempDir folder;
  const std::string path = folder.File("log");
  {
    const auto log = *RequestLog::Open({.path = path, .last_writes = std::chrono::milliseconds(0)});
    for (int i = 0; i < 1000; ++i) log->Add(Record(std::to_string(i)));
  }
  EXPECT_EQ(Lines(path).size(), 1000U);
}

TEST(RequestLog, TellsOnceThatANameCannotBeOpened) {
  const nibble::testing::TempDir folder;
  const std::string path = folder.File("log");
  ::testing::internal::CaptureStderr();
  {
    const auto log = *RequestLog::Open({.path = path, .period = std::chrono::milliseconds(1)});
    std::filesystem::rename(path, path + ".1");
    std::filesystem::create_directory(path);
    for (int i = 0; i < 5; ++i) {
      const std::string id = "line-" + std::to_string(i);
      log->Add(Record(id));
      EXPECT_TRUE(Eventually([&] { return Slurp(path + ".1").find(id) != std::string::npos; }));
    }
  }
  const std::string text = ::testing::internal::GetCapturedStderr();
  const size_t first = text.find("goes on in the file it had");
  EXPECT_NE(first, std::string::npos) << text;
  EXPECT_EQ(text.find("goes on in the file it had", first + 1), std::string::npos) << text;
}

TEST(RequestLog, OpensAgainAlsoWhileAReaderStandsStill) {
  const nibble::testing::TempDir folder;
  const std::string path = folder.File("pipe");
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  const int reader = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  ASSERT_GE(reader, 0);
  const auto log = *RequestLog::Open({.path = path, .max_queued_bytes = 200'000});
  while (log->num_dropped() == 0) log->Add(Record(std::string(200, 'x')));
  std::filesystem::rename(path, path + ".1");
  log->Reopen();
  EXPECT_TRUE(
      Eventually([&] { return std::filesystem::is_regular_file(path) && !Slurp(path).empty(); }));
  ::close(reader);
}

TEST(RequestLog, SaysWhyAFileCannotBeOpened) {
  const nibble::testing::TempDir folder;
  const std::string pipe = folder.File("pipe");
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_THAT(std::string(RequestLog::Open({.path = pipe}).status().message()),
              ::testing::HasSubstr("nobody reads"));
  const auto log = RequestLog::Open({.path = "/nonexistent/folder/log"});
  EXPECT_THAT(std::string(log.status().message()), ::testing::HasSubstr("/nonexistent/folder/log"));
}

TEST(RequestIds, EchoesNamesAndMakesOthers) {
  RequestIds ids;
  EXPECT_EQ(ids.Choose("my-id"), "my-id");
  EXPECT_EQ(ids.Choose(std::string(256, 'i')).size(), 256U);
  for (const std::string& bad : {std::string(), std::string("a b"), std::string("a\r\nb"),
                                 std::string("\xc3\xa4"), std::string(257, 'i')}) {
    EXPECT_EQ(ids.Choose(bad).size(), 32U);
  }
  EXPECT_NE(ids.Next(), ids.Next());
}

}  // namespace
}  // namespace nibble::server
