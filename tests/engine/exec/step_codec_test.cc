// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/exec/step_codec.h"

#include <bit>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/testing/random.h"

namespace nibble::engine {
namespace {

using ::testing::HasSubstr;

uint32_t Bits(float value) { return std::bit_cast<uint32_t>(value); }

void ExpectEqual(const SamplingRow& a, const SamplingRow& b) {
  EXPECT_EQ(Bits(a.temperature), Bits(b.temperature));
  EXPECT_EQ(Bits(a.top_p), Bits(b.top_p));
  EXPECT_EQ(a.top_k, b.top_k);
  EXPECT_EQ(Bits(a.min_p), Bits(b.min_p));
  EXPECT_EQ(Bits(a.repetition_penalty), Bits(b.repetition_penalty));
  EXPECT_EQ(Bits(a.presence_penalty), Bits(b.presence_penalty));
  EXPECT_EQ(Bits(a.frequency_penalty), Bits(b.frequency_penalty));
  EXPECT_EQ(a.seed, b.seed);
  EXPECT_EQ(a.output_index, b.output_index);
  EXPECT_EQ(a.logprobs, b.logprobs);
  EXPECT_EQ(a.logit_bias, b.logit_bias);
  EXPECT_EQ(a.banned_token_ids, b.banned_token_ids);
  EXPECT_EQ(a.prompt_token_ids, b.prompt_token_ids);
  EXPECT_EQ(a.output_token_ids, b.output_token_ids);
}

void ExpectEqual(const StepPlan& a, const StepPlan& b) {
  EXPECT_EQ(a.token_ids, b.token_ids);
  EXPECT_EQ(a.positions, b.positions);
  EXPECT_EQ(a.slot_mapping, b.slot_mapping);
  EXPECT_EQ(a.query_start, b.query_start);
  EXPECT_EQ(a.context_lens, b.context_lens);
  EXPECT_EQ(a.block_tables, b.block_tables);
  EXPECT_EQ(a.max_blocks_per_seq, b.max_blocks_per_seq);
  EXPECT_EQ(a.logits_indices, b.logits_indices);
  ASSERT_EQ(a.sampling.size(), b.sampling.size());
  for (size_t i = 0; i < a.sampling.size(); ++i) ExpectEqual(a.sampling[i], b.sampling[i]);
}

// Every field has a value of its own.
StepPlan FullPlan() {
  StepPlan plan;
  plan.token_ids = {1, 2, 3, 4, 5};
  plan.positions = {0, 1, 2, 7, 8};
  plan.slot_mapping = {16, 17, 18, 40, 41};
  plan.query_start = {0, 3, 5};
  plan.context_lens = {3, 9};
  plan.block_tables = {4, 0, 10, 11};
  plan.max_blocks_per_seq = 2;
  plan.logits_indices = {2, 4};
  plan.sampling.resize(2);
  plan.sampling[0] = {.temperature = 0.5F,
                      .top_p = 0.9F,
                      .top_k = 40,
                      .min_p = 0.05F,
                      .repetition_penalty = 1.1F,
                      .presence_penalty = -0.5F,
                      .frequency_penalty = 0.25F,
                      .seed = std::numeric_limits<uint64_t>::max() - 3,
                      .output_index = int64_t{1} << 40,
                      .logprobs = 5,
                      .logit_bias = {{7, -100.0F}, {9, 2.5F}},
                      .banned_token_ids = {0, 2},
                      .prompt_token_ids = {1, 2, 3},
                      .output_token_ids = {8}};
  plan.sampling[1].min_p = std::numeric_limits<float>::quiet_NaN();
  plan.sampling[1].output_token_ids = {-1, std::numeric_limits<int32_t>::min()};
  return plan;
}

StepOutput FullOutput() {
  StepOutput output;
  output.tokens.resize(3);
  output.tokens[0] = {
      .token_id = 77,
      .logprobs = {.sampled = {77, -0.25F, 2}, .top = {{5, -0.125F, 1}, {77, -0.25F, 2}}}};
  output.tokens[1] = {.token_id = 3, .no_finite_logit = true};
  output.tokens[2].logprobs.sampled.logprob = -std::numeric_limits<float>::infinity();
  return output;
}

void ExpectEqual(const TokenLogprob& a, const TokenLogprob& b) {
  EXPECT_EQ(a.token_id, b.token_id);
  EXPECT_EQ(Bits(a.logprob), Bits(b.logprob));
  EXPECT_EQ(a.rank, b.rank);
}

TEST(StepCodecTest, APlanComesBackWithEveryField) {
  const StepPlan plan = FullPlan();
  const auto decoded = DecodePlan(EncodePlan(plan));
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  ExpectEqual(*decoded, plan);
}

TEST(StepCodecTest, AnEmptyPlanComesBack) {
  const auto decoded = DecodePlan(EncodePlan({}));
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  ExpectEqual(*decoded, {});
}

TEST(StepCodecTest, AnOutputComesBackWithEveryField) {
  const StepOutput output = FullOutput();
  const auto decoded = DecodeOutput(EncodeOutput(output));
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  ASSERT_EQ(decoded->tokens.size(), output.tokens.size());
  for (size_t i = 0; i < output.tokens.size(); ++i) {
    const SampledToken& a = decoded->tokens[i];
    const SampledToken& b = output.tokens[i];
    EXPECT_EQ(a.token_id, b.token_id);
    EXPECT_EQ(a.no_finite_logit, b.no_finite_logit);
    ExpectEqual(a.logprobs.sampled, b.logprobs.sampled);
    ASSERT_EQ(a.logprobs.top.size(), b.logprobs.top.size());
    for (size_t k = 0; k < b.logprobs.top.size(); ++k) {
      ExpectEqual(a.logprobs.top[k], b.logprobs.top[k]);
    }
  }
  EXPECT_TRUE(DecodeOutput(EncodeOutput({}))->tokens.empty());
}

TEST(StepCodecTest, EveryCutIsRefused) {
  const std::string plan = EncodePlan(FullPlan());
  for (size_t size = 0; size < plan.size(); ++size) {
    EXPECT_EQ(DecodePlan(std::string_view(plan).substr(0, size)).status().code(),
              absl::StatusCode::kInvalidArgument)
        << size;
  }
  const std::string output = EncodeOutput(FullOutput());
  for (size_t size = 0; size < output.size(); ++size) {
    EXPECT_FALSE(DecodeOutput(std::string_view(output).substr(0, size)).ok()) << size;
  }
}

TEST(StepCodecTest, WhatIsWrongIsNamed) {
  const auto message = [](std::string bytes) {
    return std::string(DecodePlan(bytes).status().message());
  };
  EXPECT_THAT(message("garbage"), HasSubstr("header needs 1 times 40 bytes, 7 are there"));
  EXPECT_THAT(message(std::string(40, 'x')), HasSubstr("no step plan: it begins with 0x78787878"));
  EXPECT_THAT(message(EncodePlan(FullPlan()) + "!!"), HasSubstr("2 bytes too many"));
  std::string many = EncodePlan(FullPlan());
  const uint32_t count = 0xffffffff;
  many.replace(8, 4, reinterpret_cast<const char*>(&count), 4);  // num_token_ids
  EXPECT_THAT(message(many), HasSubstr("token_ids needs 4294967295 times 4 bytes"));
  many = EncodePlan(FullPlan());
  many.replace(36, 4, reinterpret_cast<const char*>(&count), 4);  // num_rows
  EXPECT_THAT(message(many), HasSubstr("the number of sampling rows is 4294967295, the limit is"));

  std::string output = EncodeOutput(FullOutput());
  output[12] = 2;  // no_finite_logit of the first token
  EXPECT_THAT(std::string(DecodeOutput(output).status().message()),
              HasSubstr("no_finite_logit is 2, the limit is 1"));
}

TEST(StepCodecTest, DamagedBytesGiveAValueOrAnError) {
  testing::Random random(11);
  const std::string plan = EncodePlan(FullPlan());
  const std::string output = EncodeOutput(FullOutput());
  for (int round = 0; round < 3000; ++round) {
    for (const std::string& whole : {plan, output}) {
      std::string bytes = whole;
      for (int64_t n = random.Int(1, 4); n > 0; --n) {
        bytes[static_cast<size_t>(random.Int(0, static_cast<int64_t>(bytes.size()) - 1))] =
            static_cast<char>(random.Int(0, 255));
      }
      const auto decoded_plan = DecodePlan(bytes);
      if (decoded_plan.ok()) {
        EXPECT_EQ(EncodePlan(*decoded_plan), bytes);
      }
      const auto decoded_output = DecodeOutput(bytes);
      if (decoded_output.ok()) {
        EXPECT_EQ(EncodeOutput(*decoded_output), bytes);
      }
    }
  }
}

}  // namespace
}  // namespace nibble::engine
