// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// nibble eval perplexity: one rank and several, and what it refuses.

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "base/json.h"
#include "server/cli/commands.h"

namespace nibble::cli {
namespace {

using ::testing::HasSubstr;

PerplexityOptions Options() {
  PerplexityOptions options;
  options.model.model = NIBBLE_SOURCE_DIR "/models/stories-llama";
  options.data = NIBBLE_SOURCE_DIR "/tests/fixtures/data/generated_stories.txt";
  options.context = 64;
  options.stride = 32;
  options.limit = 128;
  options.json = true;
  return options;
}

nlohmann::json Evaluate(const PerplexityOptions& options) {
  ::testing::internal::CaptureStdout();
  EXPECT_EQ(RunPerplexity(options), 0);
  auto json = ParseJson(::testing::internal::GetCapturedStdout());
  EXPECT_TRUE(json.ok()) << json.status();
  return json.ok() ? *json : nlohmann::json();
}

std::string Error(const PerplexityOptions& options) {
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(RunPerplexity(options), 1);
  return ::testing::internal::GetCapturedStderr();
}

TEST(EvalCommandTest, RanksGiveThePerplexityOfOne) {
  PerplexityOptions options = Options();
  const nlohmann::json one = Evaluate(options);
  EXPECT_EQ(one.at("scored"), 128);
  EXPECT_FALSE(one.contains("all_reduce"));
  options.tensor_parallel_size = 2;
  const nlohmann::json two = Evaluate(options);
  EXPECT_EQ(two.at("all_reduce"), "float32");
  EXPECT_EQ(two.at("tensor_parallel_size"), 2);
  // bf16 keys and values may round to the other side.
  EXPECT_NEAR(two.at("mean_nll").get<double>(), one.at("mean_nll").get<double>(), 0.005);
  options.all_reduce = {.all_reduce = "int8", .group_size = 32, .spikes = true};
  const nlohmann::json coded = Evaluate(options);
  EXPECT_EQ(coded.at("all_reduce"), "int8 g32 spikes hadamard");
  EXPECT_NEAR(coded.at("mean_nll").get<double>(), one.at("mean_nll").get<double>(), 0.02);
  EXPECT_NE(coded.at("mean_nll"), two.at("mean_nll"));
}

TEST(EvalCommandTest, StagesAndWholeExpertsGiveThePerplexityOfOne) {
  PerplexityOptions options = Options();
  options.model.model = NIBBLE_SOURCE_DIR "/models/stories-mixtral";
  options.model.dtype = "float32";
  const nlohmann::json one = Evaluate(options);
  options.pipeline_parallel_size = 2;
  const nlohmann::json stages = Evaluate(options);
  EXPECT_EQ(stages.at("pipeline_parallel_size"), 2);
  EXPECT_EQ(stages.at("mean_nll"), one.at("mean_nll"));  // the same sums
  options.tensor_parallel_size = 2;
  options.experts = {.enable_expert_parallel = true, .check_routing = true};
  EXPECT_NEAR(Evaluate(options).at("mean_nll").get<double>(), one.at("mean_nll").get<double>(),
              1e-4);
}

TEST(EvalCommandTest, WhatMakesNoSenseIsRefused) {
  PerplexityOptions options = Options();
  options.tensor_parallel_size = 0;
  options.stride = 65;
  EXPECT_THAT(Error(options), ::testing::AllOf(HasSubstr("--tensor-parallel-size is 0"),
                                               HasSubstr("--stride is 65")));
  options = Options();
  options.tensor_parallel_size = 65;
  EXPECT_THAT(Error(options), HasSubstr("--tensor-parallel-size is 65, want 1 to 64"));
  options.tensor_parallel_size = 3;
  EXPECT_THAT(Error(options), HasSubstr("num_attention_heads is 8"));
  options.experts.expert_parallel_size = 3;
  EXPECT_THAT(Error(options), HasSubstr("--expert-parallel-size 3: the model"));
  options.experts = {};
  options.pipeline_parallel_size = 65;
  EXPECT_THAT(Error(options), HasSubstr("--pipeline-parallel-size is 65, want 1 to 64"));
  options.pipeline_parallel_size = 1;
  options.tensor_parallel_size = 2;
  options.all_reduce.all_reduce = "auto";
  EXPECT_THAT(Error(options), HasSubstr("--all-reduce auto"));
  options.all_reduce = {.all_reduce = "none", .spikes = true};
  EXPECT_THAT(Error(options), HasSubstr("--all-reduce none has no groups"));
  options.all_reduce.all_reduce = "int7";
  EXPECT_THAT(Error(options), HasSubstr("int7"));
  options.all_reduce.all_reduce = "int4";
  options.tensor_parallel_size = 1;
  EXPECT_THAT(Error(options), HasSubstr("--all-reduce int4 needs --tensor-parallel-size 2"));
}

}  // namespace
}  // namespace nibble::cli
