// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <cstdint>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/model/memory.h"
#include "engine/model/model.h"

namespace nibble::engine {
namespace {

using ::testing::HasSubstr;

ModelConfig SmallConfig() {
  ModelConfig config;
  config.num_layers = 3;
  config.num_kv_heads = 2;
  config.head_dim = 8;
  return config;
}

TEST(KvCacheTest, LayersLieApartAndAreZero) {
  const ModelConfig config = SmallConfig();
  EXPECT_EQ(KvCache::BlockBytes(config, 16, DType::kBf16), 3 * 2 * 2 * 16 * 8 * 2);
  auto cache = HostKvCache::Create(config, 5, 16, DType::kBf16);
  ASSERT_TRUE(cache.ok()) << cache.status();
  const int64_t half_bytes = 5 * 2 * 16 * 8 * 2;
  const auto* base = static_cast<const uint8_t*>(cache->layer(0).keys);
  for (int64_t l = 0; l < 3; ++l) {
    const kernels::KvCacheView view = cache->layer(l);
    EXPECT_EQ(static_cast<const uint8_t*>(view.keys) - base, l * 2 * half_bytes);
    EXPECT_EQ(static_cast<const uint8_t*>(view.values) - base, (l * 2 + 1) * half_bytes);
    EXPECT_EQ(view.num_blocks, 5);
    EXPECT_EQ(view.block_size, 16);
  }
  for (int64_t i = 0; i < 6 * half_bytes; ++i) ASSERT_EQ(base[i], 0) << "byte " << i;
}

TEST(KvCacheTest, Int8HasAScaleForEachHeadAndToken) {
  ModelConfig config = SmallConfig();
  config.head_dim = 7;  // layers of an odd size leave the scales aligned
  EXPECT_EQ(KvCache::BlockBytes(config, 3, DType::kI8), 3 * 2 * 2 * 3 * (7 + 4));
  auto cache = HostKvCache::Create(config, 5, 3, DType::kI8);
  ASSERT_TRUE(cache.ok()) << cache.status();
  const kernels::KvCacheView first = cache->layer(0);
  for (int64_t l = 0; l < 3; ++l) {
    const kernels::KvCacheView view = cache->layer(l);
    EXPECT_EQ(view.dtype, DType::kI8);
    EXPECT_EQ(view.num_bytes(), 5 * 2 * 3 * 7);
    EXPECT_EQ(view.num_rows(), 5 * 2 * 3);
    EXPECT_EQ(static_cast<const char*>(view.keys) - static_cast<const char*>(first.keys),
              l * 2 * 210);
    EXPECT_EQ(view.key_scales - first.key_scales, l * 2 * 30);
    EXPECT_EQ(view.value_scales - view.key_scales, 30);
    for (int64_t i = 0; i < 60; ++i) ASSERT_EQ(view.key_scales[i], 0.0F);
  }
  cache = HostKvCache::Create(config, 5, 3, DType::kBf16);
  ASSERT_TRUE(cache.ok()) << cache.status();
  EXPECT_EQ(cache->layer(0).key_scales, nullptr);
}

TEST(KvCacheTest, TooLargeForTheMachineIsRefusedByBytes) {
  // 2^31 / 16 blocks of 3 * 2 * 2 * 16 * 8192 * 4 bytes: 845 TB.
  ModelConfig config = SmallConfig();
  config.head_dim = 8192;
  const auto cache = HostKvCache::Create(config, 134217727, 16, DType::kF32);
  EXPECT_EQ(cache.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(cache.status().message()), HasSubstr("844424923840512 bytes"));
}

TEST(KvCacheTest, OverflowingSizesAreRefused) {
  ModelConfig config = SmallConfig();
  config.num_layers = int64_t{1} << 20;
  config.num_kv_heads = int64_t{1} << 10;
  config.head_dim = int64_t{1} << 14;  // 2^50 bytes and more a block
  const auto cache = HostKvCache::Create(config, 134217727, 16, DType::kF32);
  EXPECT_EQ(cache.status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(KvCacheTest, BadArgumentsAreNamed) {
  const ModelConfig config = SmallConfig();
  EXPECT_THAT(std::string(HostKvCache::Create(config, 0, 16, DType::kF32).status().message()),
              HasSubstr("0 KV blocks"));
  EXPECT_THAT(std::string(HostKvCache::Create(config, -3, 16, DType::kF32).status().message()),
              HasSubstr("-3 KV blocks"));
  // A slot is an int32: 2^27 blocks of 16 are one too many.
  EXPECT_THAT(
      std::string(HostKvCache::Create(config, 134217728, 16, DType::kF32).status().message()),
      HasSubstr("limits are 1 and 134217727"));
  EXPECT_THAT(std::string(HostKvCache::Create(config, 4, 0, DType::kF32).status().message()),
              HasSubstr("block size is 0"));
  EXPECT_EQ(HostKvCache::Create(config, 4, 16, DType::kU8).status().code(),
            absl::StatusCode::kUnimplemented);
}

TEST(MemoryTest, MemAvailableIsRead) {
  EXPECT_EQ(internal::ParseMemAvailable("MemTotal: 9 kB\nMemAvailable:    1234 kB\nX: 1\n"),
            1234 * 1024);
  EXPECT_EQ(internal::ParseMemAvailable("MemTotal: 9 kB\n"), INT64_MAX);
  EXPECT_EQ(internal::ParseMemAvailable("MemAvailable: x"), INT64_MAX);
  EXPECT_EQ(internal::ParseMemAvailable("MemAvailable: 99999999999999999999 kB"), INT64_MAX);
  EXPECT_GT(AvailableMemoryBytes(), int64_t{1} << 20);
  EXPECT_TRUE(CheckMemory(1, "a byte").ok());
}

}  // namespace
}  // namespace nibble::engine
