// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/step_sizing.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr engine::StepLimits kLimits = {
    .max_tokens = 2048, .max_positions = 128, .max_samples = 256, .max_seqs = 256};
constexpr int64_t kSeqBytes = 10'000;

// 1000 bytes a token, in rows of 64, and 500 a sequence.
int64_t Bytes(const engine::StepLimits& limits) {
  return (limits.max_tokens + 63) / 64 * 64 * 1000 + limits.max_seqs * 500;
}

std::string Block(const engine::KvMemory& memory, const StepNeighbors& neighbors) {
  const absl::Status status = StepDoesNotFit(Bytes, kLimits, memory, kSeqBytes, neighbors);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  return std::string(status.message());
}

TEST(StepSizingTest, WhatFitsIsComputed) {
  // A sixteenth stays free, and four times a sequence for the cache: 1'875'000 - 40'000 for steps,
  // of which 256 sequences take 128'000.
  const std::string text = Block({.available_bytes = 2'000'000}, {});
  EXPECT_EQ(text,
            "the memory of the largest step does not fit\n"
            "  needed: 2.18 MB for --max-num-batched-tokens 2048 and --max-num-seqs 256, and 40.0 "
            "KB beside it for the KV cache\n"
            "  there is: 2.00 MB available\n"
            "  try: --max-num-batched-tokens 1664 or less\n"
            "  try: a machine, or a memory limit of the container, with 363.7 KB more");
  engine::StepLimits limits = kLimits;
  limits.max_tokens = 1664;
  EXPECT_LE(Bytes(limits) + 4 * kSeqBytes, 1'875'000);
  limits.max_tokens = 1728;
  EXPECT_GT(Bytes(limits) + 4 * kSeqBytes, 1'875'000);
}

TEST(StepSizingTest, FewerSequencesWhereTheseAreTooMany) {
  const std::string text = Block({.available_bytes = 2'304'000}, {});  // 2'160'000 - 40'000
  EXPECT_THAT(text, HasSubstr("try: --max-num-seqs 144 or less\n"));
  EXPECT_THAT(text, HasSubstr("try: --max-num-batched-tokens 1984 or less\n"));
}

TEST(StepSizingTest, BothWhereNeitherIsEnough) {
  // 281'250 - 40'000: 256 sequences leave no room for as many tokens.
  const std::string text = Block({.available_bytes = 300'000}, {});
  EXPECT_THAT(text, HasSubstr("try: --max-num-seqs 128 or less with --max-num-batched-tokens 128 "
                              "or less\n"));
  EXPECT_THAT(Block({.available_bytes = 50'000}, {}), Not(HasSubstr("try: --max-num-")));
}

TEST(StepSizingTest, RanksOfAHostShareItsMemoryAndTheGivenCache) {
  // 3'750'000 / 2 - 500'000: 1'375'000.
  const std::string text =
      Block({.available_bytes = 4'000'000}, {.num_ranks = 2, .kv_cache_memory_bytes = 1'000'000});
  EXPECT_THAT(text, HasSubstr("of each of 2 ranks"));
  EXPECT_THAT(text, HasSubstr("try: --max-num-batched-tokens 1216 or less\n"));
}

TEST(StepSizingTest, WhatMayNotBeLoweredIsNot) {
  EXPECT_THAT(Block({.available_bytes = 2'000'000}, {.min_batched_tokens = 1665}),
              Not(HasSubstr("try: --max-num-batched-tokens")));
}

TEST(StepSizingTest, ADeviceMayGiveMore) {
  engine::KvMemory memory{.available_bytes = 2'000'000, .is_own = true, .total_bytes = 8'000'000};
  const StepNeighbors neighbors{.num_ranks = 4, .gpu_memory_utilization = 0.5};
  // (2'176'000 + 10'000) * 16 / 15 - 2'000'000 = 331'733: 4.2 % of the device.
  EXPECT_THAT(Block(memory, neighbors), HasSubstr("try: --gpu-memory-utilization 0.55 or more"));
  EXPECT_THAT(Block(memory, neighbors),
              HasSubstr("2.00 MB: what --gpu-memory-utilization 0.5 leaves beside the weights"));
  memory.total_bytes = 400'000;
  EXPECT_THAT(Block(memory, neighbors), Not(HasSubstr("try: --gpu-memory-utilization")));
  // More is taken than it was to give.
  memory = {.available_bytes = -1'000'000, .is_own = true, .total_bytes = 80'000'000};
  EXPECT_THAT(Block(memory, neighbors), HasSubstr("try: --gpu-memory-utilization 0.55 or more"));
}

}  // namespace
}  // namespace nibble::cli
