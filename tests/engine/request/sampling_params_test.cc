// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/request/sampling_params.h"

#include <cmath>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::engine {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

SamplingLimits Limits() { return {.vocab_size = 100, .max_model_len = 64}; }

std::string Violation(const SamplingParams& params) {
  const absl::Status status = params.Validate(Limits());
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  return std::string(status.message());
}

TEST(SamplingParamsTest, DefaultsAndEdgesAreValid) {
  EXPECT_TRUE(SamplingParams().Validate(Limits()).ok());
  SamplingParams edges{.max_tokens = 64,
                       .min_tokens = 64,
                       .temperature = 2.0F,
                       .top_p = 1.0F,
                       .top_k = std::numeric_limits<int32_t>::max(),
                       .min_p = 1.0F,
                       .repetition_penalty = 2.0F,
                       .presence_penalty = -2.0F,
                       .frequency_penalty = 2.0F,
                       .logit_bias = {{0, -100.0F}, {99, 100.0F}},
                       .stop = {std::string(1024, 'x')},
                       .stop_token_ids = {0, 99},
                       .logprobs = 20};
  EXPECT_TRUE(edges.Validate(Limits()).ok()) << edges.Validate(Limits());
  edges.max_tokens = kFillContext;
  EXPECT_TRUE(edges.Validate(Limits()).ok());
}

TEST(SamplingParamsTest, EveryViolationIsListedWithValueAndLimit) {
  const SamplingParams bad{.max_tokens = 65,
                           .min_tokens = -1,
                           .temperature = 2.5F,
                           .top_p = 0.0F,
                           .top_k = -3,
                           .min_p = 1.5F,
                           .repetition_penalty = 0.0F,
                           .presence_penalty = -3.0F,
                           .frequency_penalty = 3.0F,
                           .logit_bias = {{100, 0.0F}, {-1, 0.0F}, {5, 101.0F}, {5, 0.0F}},
                           .stop = {"", std::string(1025, 'x'), "\xff"},
                           .stop_token_ids = {3, 100},
                           .logprobs = 21};
  const std::string message = Violation(bad);
  for (const char* part :
       {"max_tokens is 65, must be in [1, 64]", "min_tokens is -1, must be in [0, max_tokens = 65]",
        "temperature is 2.5, must be in [0, 2]", "top_p is 0, must be in (0, 1]",
        "top_k is -3, must be at least 0", "min_p is 1.5", "repetition_penalty is 0",
        "presence_penalty is -3, must be in [-2, 2]", "frequency_penalty is 3",
        "logit_bias token id is 100, must be in [0, 100) (and 1 more like it)",
        "logit_bias names token id 5 twice", "logit_bias of token id 5 is 101", "stop[0] is empty",
        "stop[1] has 1025 bytes, the limit is 1024", "stop[2] is not valid UTF-8",
        "stop_token_ids[1] is 100, must be in [0, 100)", "logprobs is 21, must be in [-1, 20]"}) {
    EXPECT_THAT(message, HasSubstr(part));
  }
}

TEST(SamplingParamsTest, NanAndInfinityViolateEveryRange) {
  for (const float value : {kNan, kInf, -kInf}) {
    const SamplingParams bad{.temperature = value,
                             .top_p = value,
                             .min_p = value,
                             .repetition_penalty = value,
                             .presence_penalty = value,
                             .frequency_penalty = value,
                             .logit_bias = {{1, value}}};
    const std::string message = Violation(bad);
    for (const char* field : {"temperature is", "top_p is", "min_p is", "repetition_penalty is",
                              "presence_penalty is", "frequency_penalty is", "logit_bias of"}) {
      EXPECT_THAT(message, HasSubstr(field)) << value;
    }
  }
}

TEST(SamplingParamsTest, HugeListsAreCountedNotRead) {
  SamplingParams bad;
  bad.stop.assign(100000, "");
  bad.stop_token_ids.assign(257, -1);
  bad.logit_bias.assign(1025, {-1, 0.0F});
  const std::string message = Violation(bad);
  EXPECT_THAT(message, HasSubstr("stop has 100000 entries, the limit is 16"));
  EXPECT_THAT(message, HasSubstr("stop_token_ids has 257 entries, the limit is 256"));
  EXPECT_THAT(message, HasSubstr("logit_bias has 1025 entries, the limit is 1024"));
  EXPECT_THAT(message, Not(HasSubstr("empty")));
}

TEST(SamplingParamsTest, CountsThatOverflowAreRefused) {
  EXPECT_THAT(Violation({.max_tokens = 0}), HasSubstr("max_tokens is 0"));
  EXPECT_THAT(Violation({.max_tokens = kFillContext - 1}), HasSubstr("max_tokens is 9223"));
  EXPECT_THAT(Violation({.max_tokens = 4, .min_tokens = 5}),
              HasSubstr("min_tokens is 5, must be in [0, max_tokens = 4]"));
  EXPECT_THAT(Violation({.max_tokens = std::numeric_limits<int64_t>::min()}),
              HasSubstr("max_tokens is -9223"));
}

}  // namespace
}  // namespace nibble::engine
