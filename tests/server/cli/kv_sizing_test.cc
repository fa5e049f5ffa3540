// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/kv_sizing.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr int64_t kMaxModelLen = 160;  // ten blocks of 16 tokens

std::string MessageOf(const absl::Status& status) { return std::string(status.message()); }

server::ServeConfig Config(int64_t max_num_seqs, int64_t kv_bytes) {
  server::ServeConfig config;
  config.max_num_seqs = max_num_seqs;
  config.kv_cache_memory_bytes = kv_bytes;
  return config;
}

TEST(KvSizingTest, FullSequencesWithinAQuarterOfFreeMemory) {
  const KvHost roomy{.block_bytes = 1000, .available_bytes = 1'000'000'000};
  EXPECT_EQ(SizeKvCache(Config(4, 0), kMaxModelLen, {&roomy, 1})->num_blocks, 40);
  const KvHost tight{.block_bytes = 1000, .available_bytes = 80'000};
  const auto size = SizeKvCache(Config(4, 0), kMaxModelLen, {&tight, 1});
  EXPECT_EQ(size->num_blocks, 20);
  EXPECT_EQ(size->bytes, 20'000);
}

TEST(KvSizingTest, GivenBytesAreUsedWhole) {
  const KvHost host{.block_bytes = 1000, .available_bytes = 1'000'000'000};
  EXPECT_EQ(SizeKvCache(Config(4, 99'999), kMaxModelLen, {&host, 1})->num_blocks, 99);
}

TEST(KvSizingTest, GivenBytesMustBeThereForAllRanksOfAHost) {
  const std::vector<KvHost> hosts = {
      {.name = "node 0", .block_bytes = 1000, .available_bytes = 1'000'000},
      {.name = "node 1", .block_bytes = 4000, .available_bytes = 90'000}};
  EXPECT_EQ(SizeKvCache(Config(4, 80'000), kMaxModelLen, hosts)->num_blocks, 20);
  const auto size = SizeKvCache(Config(4, 100'000), kMaxModelLen, hosts);
  EXPECT_EQ(size.status().code(), absl::StatusCode::kResourceExhausted);
  // 22 blocks fit; 22 on node 1 are 88000 bytes, of which node 0 makes 88.
  EXPECT_EQ(MessageOf(size.status()),
            "the KV cache does not fit on node 1\n"
            "  needed: 100.0 KB, as --kv-cache-memory-bytes 100000 says\n"
            "  there is: 90.0 KB available\n"
            "  try: --kv-cache-memory-bytes 88000 or less");
  EXPECT_TRUE(SizeKvCache(Config(4, 88'000), kMaxModelLen, hosts).ok());
}

TEST(KvSizingTest, TheTightestHostDecidesForAll) {
  const std::vector<KvHost> hosts = {
      {.name = "node 0", .block_bytes = 1000, .available_bytes = 1'000'000'000},
      {.name = "node 1", .block_bytes = 2000, .available_bytes = 120'000}};
  const auto size = SizeKvCache(Config(4, 0), kMaxModelLen, hosts);
  EXPECT_EQ(size->num_blocks, 15);
  EXPECT_EQ(size->bytes, 15 * 3000);
}

TEST(KvSizingTest, OneSequenceMustFitEverywhere) {
  const std::vector<KvHost> hosts = {
      {.name = "node 0", .block_bytes = 1000, .available_bytes = 1'000'000'000},
      {.name = "node 1", .block_bytes = 1000, .available_bytes = 36'000}};
  const auto size = SizeKvCache(Config(4, 0), kMaxModelLen, hosts);
  EXPECT_EQ(size.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(MessageOf(size.status()),
            "the KV cache does not fit on node 1\n"
            "  needed: 10.0 KB for one sequence of --max-model-len 160: 10 blocks of 16 tokens, "
            "1.00 KB each\n"
            "  there is: 9.00 KB: a quarter of the 36.0 KB that are available\n"
            "  try: --max-model-len 144 or less\n"
            "  try: --kv-cache-memory-bytes 10000 or more");
  // Both do.
  EXPECT_TRUE(SizeKvCache(Config(4, 0), 144, hosts).ok());
  EXPECT_TRUE(SizeKvCache(Config(4, 10'000), kMaxModelLen, hosts).ok());
}

TEST(KvSizingTest, WhatIsTriedHelps) {
  // Not one block, and not one context of any length.
  const KvHost none{.block_bytes = 1000, .available_bytes = 999};
  const std::string text = MessageOf(SizeKvCache(Config(4, 0), kMaxModelLen, {&none, 1}).status());
  EXPECT_THAT(text, Not(HasSubstr("--max-model-len 0")));
  EXPECT_THAT(text, Not(HasSubstr("--kv-cache-memory-bytes")));
  EXPECT_THAT(text, HasSubstr("try: a machine, or a memory limit of the container, with 9.00 KB "
                              "more"));
  // Given too little: the context that fits, and the bytes that do.
  const KvHost roomy{.block_bytes = 1000, .available_bytes = 1'000'000};
  EXPECT_EQ(MessageOf(SizeKvCache(Config(4, 3'999), kMaxModelLen, {&roomy, 1}).status()),
            "the KV cache does not fit\n"
            "  needed: 10.0 KB for one sequence of --max-model-len 160: 10 blocks of 16 tokens, "
            "1.00 KB each\n"
            "  there is: 4.00 KB, as --kv-cache-memory-bytes 3999 says\n"
            "  try: --max-model-len 48 or less\n"
            "  try: --kv-cache-memory-bytes 10000 or more");
  // Given too much, and less would hold no sequence of that length.
  const KvHost tight{.block_bytes = 1000, .available_bytes = 5'500};
  EXPECT_THAT(MessageOf(SizeKvCache(Config(4, 50'000), kMaxModelLen, {&tight, 1}).status()),
              HasSubstr("try: --max-model-len 80 or less with --kv-cache-memory-bytes 5000 or "
                        "less"));
  EXPECT_TRUE(SizeKvCache(Config(4, 5'000), 80, {&tight, 1}).ok());
  // The host with the least room decides what fits.
  const std::vector<KvHost> hosts = {
      {.name = "node 0", .block_bytes = 1000, .available_bytes = 36'000},
      {.name = "node 1", .block_bytes = 4000, .available_bytes = 36'000}};
  const std::string least = MessageOf(SizeKvCache(Config(4, 0), kMaxModelLen, hosts).status());
  EXPECT_THAT(least, HasSubstr("try: --max-model-len 32 or less"));
  EXPECT_THAT(least, HasSubstr("with 4.00 KB more"));
  EXPECT_TRUE(SizeKvCache(Config(4, 0), 32, hosts).ok());
  EXPECT_FALSE(SizeKvCache(Config(4, 0), 33, hosts).ok());
}

TEST(KvSizingTest, MemoryOfItsOwnIsTakenWhole) {
  const std::vector<KvHost> devices = {
      {.name = "rank 0", .block_bytes = 1000, .available_bytes = 90'000, .memory_is_own = true},
      {.name = "rank 1", .block_bytes = 1000, .available_bytes = 85'500, .memory_is_own = true}};
  const auto size = SizeKvCache(Config(4, 0), kMaxModelLen, devices);
  ASSERT_TRUE(size.ok()) << size.status();
  EXPECT_EQ(size->num_blocks, 85);  // all that fits on both, beyond 4 sequences of 10
  EXPECT_EQ(size->bytes, 170'000);
  EXPECT_EQ(SizeKvCache(Config(4, 50'000), kMaxModelLen, devices)->num_blocks, 50);
  const KvHost small{
      .name = "rank 0", .block_bytes = 1000, .available_bytes = 4'000, .memory_is_own = true};
  const std::string text = MessageOf(SizeKvCache(Config(4, 0), kMaxModelLen, {&small, 1}).status());
  EXPECT_THAT(text, HasSubstr("there is: 4.00 KB: what --gpu-memory-utilization 0.9 leaves"));
  EXPECT_THAT(text, HasSubstr("try: --max-model-len 64 or less\n"));
  EXPECT_THAT(text, HasSubstr("try: more devices"));
  EXPECT_THAT(text, Not(HasSubstr("try: --gpu-memory-utilization")));  // of how much is not known
  EXPECT_THAT(text, Not(HasSubstr("--kv-cache-memory-bytes")));
}

TEST(KvSizingTest, TheUtilizationThatIsEnoughIsComputed) {
  std::vector<KvHost> devices(2, {.name = "rank 0",
                                  .block_bytes = 1000,
                                  .available_bytes = 4'000,
                                  .memory_is_own = true,
                                  .total_bytes = 100'000});
  devices[1].available_bytes = -500;  // 10.5 % are missing
  server::ServeConfig config = Config(4, 0);
  config.model.gpu_memory_utilization = 0.8;
  const auto text = [&] { return MessageOf(SizeKvCache(config, kMaxModelLen, devices).status()); };
  EXPECT_THAT(text(), HasSubstr("try: --gpu-memory-utilization 0.91 or more\n"));
  for (KvHost& device : devices) device.available_bytes += 11'000;  // what that gives
  EXPECT_TRUE(SizeKvCache(config, kMaxModelLen, devices).ok());
  for (KvHost& device : devices) device.available_bytes -= 21'000;
  EXPECT_THAT(text(), Not(HasSubstr("try: --gpu-memory-utilization")));  // 0.98 is the limit
}

TEST(KvSizingTest, TheStepThatLeavesEnoughIsComputed) {
  KvHost device{.block_bytes = 1000,
                .available_bytes = 4'000,
                .memory_is_own = true,
                .step_token_bytes = 10,
                .step_seq_bytes = 4'000};
  server::ServeConfig config = Config(4, 0);
  config.max_num_batched_tokens = 2048;
  const auto text = [&] {
    return MessageOf(SizeKvCache(config, kMaxModelLen, {&device, 1}).status());
  };
  // 6000 bytes are missing: 600 tokens, in rows of 64.
  EXPECT_THAT(text(), HasSubstr("try: --max-num-batched-tokens 1408 or less\n"));
  EXPECT_THAT(text(), HasSubstr("try: --max-num-seqs 2 or less\n"));
  config.enable_chunked_prefill = false;
  config.max_num_batched_tokens = 704;  // of which 160 must stay
  EXPECT_THAT(text(), Not(HasSubstr("try: --max-num-batched-tokens")));
  device.step_seq_bytes = 1'000;
  EXPECT_THAT(text(), Not(HasSubstr("try: --max-num-seqs")));
  // Of memory that is shared the cache has a quarter: 36'000 are missing.
  device = {.block_bytes = 1000, .available_bytes = 4'000, .step_token_bytes = 100};
  config = Config(4, 0);
  config.max_num_batched_tokens = 2048;
  EXPECT_THAT(text(), HasSubstr("try: --max-num-batched-tokens 1664 or less\n"));
}

TEST(KvSizingTest, SizesThatARankToldAreChecked) {
  const KvHost host{.name = "node 1", .block_bytes = 0, .available_bytes = 1 << 20};
  EXPECT_THAT(std::string(SizeKvCache(Config(4, 0), kMaxModelLen, {&host, 1}).status().message()),
              HasSubstr("node 1: a KV block has 0 bytes"));
}

}  // namespace
}  // namespace nibble::cli
