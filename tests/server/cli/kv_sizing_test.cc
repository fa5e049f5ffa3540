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

constexpr int64_t kMaxModelLen = 160;  // ten blocks of 16 tokens

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
  EXPECT_THAT(
      std::string(size.status().message()),
      HasSubstr("node 1: --kv-cache-memory-bytes asks for 100.0 KB, 90.0 KB are available"));
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
  EXPECT_THAT(std::string(size.status().message()),
              HasSubstr("node 1: a KV cache of 9.00 KB holds 144 tokens, one sequence of "
                        "--max-model-len 160 needs 10.0 KB: use --max-model-len 144 or less"));
  const KvHost none{.block_bytes = 1000, .available_bytes = 1000};
  EXPECT_THAT(std::string(SizeKvCache(Config(4, 0), kMaxModelLen, {&none, 1}).status().message()),
              HasSubstr("does not hold one block"));
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
  EXPECT_THAT(std::string(SizeKvCache(Config(4, 0), kMaxModelLen, {&small, 1}).status().message()),
              HasSubstr("--gpu-memory-utilization"));
}

TEST(KvSizingTest, SizesThatARankToldAreChecked) {
  const KvHost host{.name = "node 1", .block_bytes = 0, .available_bytes = 1 << 20};
  EXPECT_THAT(std::string(SizeKvCache(Config(4, 0), kMaxModelLen, {&host, 1}).status().message()),
              HasSubstr("node 1: a KV block has 0 bytes"));
}

}  // namespace
}  // namespace nibble::cli
