// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/start_error.h"

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/model/weight_loader.h"
#include "tests/testing/temp_dir.h"

namespace nibble::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

std::string MessageOf(const absl::Status& status) { return std::string(status.message()); }

TEST(StartErrorTest, IsABlockOfLines) {
  const absl::Status status = StartError{
      .what = "it does not fit",
      .needed = "2 GB",
      .there_is = "1 GB",
      .remedies = {"less",
                   "more"}}.ToStatus(absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(MessageOf(status),
            "it does not fit\n  needed: 2 GB\n  there is: 1 GB\n  try: less\n  try: more");
  EXPECT_EQ(MessageOf(StartError{.what = "no"}.ToStatus(absl::StatusCode::kInternal)), "no");
}

TEST(StartErrorTest, APortThatIsTakenForbiddenOrElsewhere) {
  const auto refused = [](int error) {
    const absl::Status cause = Unavailable("cannot listen on 10.1.2.3 port 80: {}",
                                           std::generic_category().message(error));
    return MessageOf(CannotListen("--port", "10.1.2.3", 80, cause));
  };
  EXPECT_THAT(refused(EADDRINUSE), StartsWith("--port 80 cannot be opened\n"));
  EXPECT_THAT(refused(EADDRINUSE), HasSubstr("in use"));
  EXPECT_THAT(refused(EADDRINUSE), HasSubstr("try: --port with another number, or 0"));
  EXPECT_THAT(refused(EADDRINUSE), HasSubstr("sport = :80"));
  EXPECT_THAT(refused(EACCES), HasSubstr("try: --port 1024 or above"));
  EXPECT_THAT(refused(EADDRNOTAVAIL), HasSubstr("try: --host with an address of this machine"));
}

class ModelFilesTest : public ::testing::Test {
 protected:
  void Write(const std::string& name, const std::string& text = "{}") {
    std::ofstream(dir_.path() + "/" + name) << text;
  }
  std::string Refusal() { return MessageOf(CheckModelFiles(dir_.path())); }

  nibble::testing::TempDir dir_;
};

TEST_F(ModelFilesTest, WhatIsMissingIsListed) {
  EXPECT_THAT(Refusal(), HasSubstr("the model directory is incomplete"));
  EXPECT_THAT(Refusal(), HasSubstr("there is: no config.json, no model.safetensors (or "
                                   "model.safetensors.index.json and its files), no "
                                   "tokenizer.json (or tokenizer.model)"));
  Write("config.json");
  Write("tokenizer.model");
  EXPECT_THAT(Refusal(), Not(HasSubstr("no config.json")));
  EXPECT_THAT(Refusal(), Not(HasSubstr("no tokenizer")));
  Write("model.safetensors");
  EXPECT_EQ(Refusal(), "");
  Write("config.json", "");  // as a full disk leaves it
  EXPECT_THAT(Refusal(), HasSubstr("there is: no config.json\n"));
}

TEST_F(ModelFilesTest, ShardsThatTheIndexNames) {
  Write("config.json");
  Write("tokenizer.json");
  Write("model.safetensors.index.json",
        R"({"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "1.safetensors",
            "d": "3.safetensors", "e": "4.safetensors", "f": "5.safetensors", "g": "../x"}})");
  Write("2.safetensors");
  EXPECT_THAT(Refusal(), HasSubstr("there is: no 1.safetensors, no 3.safetensors, no "
                                   "4.safetensors, no 1 more files of weights\n"));
  for (const char* name : {"1", "3", "4", "5"}) Write(std::string(name) + ".safetensors");
  EXPECT_EQ(Refusal(), "");
  // What is no index is refused by who reads it.
  for (const char* index : {"[]", "{", R"({"weight_map": 3})", R"({"weight_map": {"a": 3}})"}) {
    Write("model.safetensors.index.json", index);
    EXPECT_EQ(Refusal(), "");
  }
}

TEST_F(ModelFilesTest, NoDirectoryAtAll) {
  EXPECT_THAT(MessageOf(CheckModelFiles(dir_.path() + "/no")), HasSubstr("no such directory"));
}

class WeightsTest : public ::testing::Test {
 protected:
  WeightsTest() {
    const auto model =
        engine::LoadModelConfig(std::string(NIBBLE_SOURCE_DIR) + "/models/stories-llama");
    EXPECT_TRUE(model.ok()) << model.status();
    model_ = *model;
  }
  static engine::LoadOptions With(engine::Quantization quantization) {
    engine::LoadOptions options;
    options.quantization = quantization;
    return options;
  }
  int64_t Bytes(engine::Quantization quantization) const {
    return engine::LeastWeightBytes(model_, With(quantization));
  }

  engine::ModelConfig model_;
};

TEST_F(WeightsTest, WhatWouldFitIsComputed) {
  const engine::LoadOptions whole = With(engine::Quantization::kNone);
  const int64_t bytes = Bytes(engine::Quantization::kNone);
  const int64_t w8a8 = Bytes(engine::Quantization::kW8A8);
  const int64_t w4a8 = Bytes(engine::Quantization::kW4A8);
  ASSERT_LT(w4a8, w8a8);
  ASSERT_LT(w8a8, bytes);
  EXPECT_TRUE(CheckWeightsFit(model_, {whole}, bytes).ok());
  const absl::Status refused = CheckWeightsFit(model_, {whole}, bytes - 1);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(refused), HasSubstr("the model's weights do not fit into memory\n"));
  EXPECT_THAT(MessageOf(refused), HasSubstr("try: --quantization w8a8, which needs"));
  EXPECT_THAT(MessageOf(refused), HasSubstr("try: --quantization w4a8, which needs"));
  EXPECT_THAT(MessageOf(CheckWeightsFit(model_, {whole}, w8a8 - 1)),
              Not(HasSubstr("--quantization w8a8")));
  EXPECT_THAT(MessageOf(CheckWeightsFit(model_, {whole}, w8a8 - 1)),
              HasSubstr("--quantization w4a8"));
  EXPECT_THAT(MessageOf(CheckWeightsFit(model_, {whole}, w4a8 - 1)),
              Not(HasSubstr("--quantization")));
  EXPECT_THAT(MessageOf(CheckWeightsFit(model_, {With(engine::Quantization::kW4A8)}, 0)),
              Not(HasSubstr("--quantization")));
}

TEST_F(WeightsTest, RanksOfAHostShareItsMemory) {
  engine::LoadOptions half = With(engine::Quantization::kNone);
  half.place = {.rank = 0, .size = 2};
  engine::LoadOptions other = half;
  other.place.rank = 1;
  const int64_t both =
      engine::LeastWeightBytes(model_, half) + engine::LeastWeightBytes(model_, other);
  EXPECT_TRUE(CheckWeightsFit(model_, {half, other}, both).ok());
  EXPECT_THAT(MessageOf(CheckWeightsFit(model_, {half, other}, both - 1)),
              HasSubstr("for the 2 ranks of this host"));
}

}  // namespace
}  // namespace nibble::cli
