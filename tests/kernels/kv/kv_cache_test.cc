// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/kv/kv_cache.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"

#include "base/cpu_features.h"
#include "base/float16.h"
#include "kernels/kv/kv_convert.h"
#include "kernels/quant/quantize_rows.h"
#include "tests/testing/random.h"

namespace nibble::kernels {
namespace {

using ::nibble::testing::Random;

// What a head is stored as: element d's bits, and the scale.
struct StoredHead {
  std::vector<uint32_t> bits;
  float scale = 1.0F;
};

StoredHead Store(const float* head, int64_t head_dim, DType dtype) {
  StoredHead stored;
  std::vector<int8_t> bytes(static_cast<size_t>(head_dim));
  int32_t sum = 0;
  QuantizeRowRange(head, head_dim, 1, head_dim, {bytes.data(), &stored.scale, &sum, head_dim},
                   Isa::kRef);
  for (int64_t d = 0; d < head_dim; ++d) {
    const float value = head[d];
    stored.bits.push_back(dtype == DType::kBf16  ? ToBFloat16(value).bits
                          : dtype == DType::kF16 ? ToFloat16(value).bits
                          : dtype == DType::kI8
                              ? static_cast<uint8_t>(bytes[static_cast<size_t>(d)])
                              : std::bit_cast<uint32_t>(value));
  }
  return stored;
}

// A cache whose memory is of one pattern before, with what should be in it.
struct Caches {
  Caches(DType dtype, int64_t num_blocks, int64_t num_kv_heads, int64_t block_size,
         int64_t head_dim)
      : view{.dtype = dtype,
             .num_blocks = num_blocks,
             .num_kv_heads = num_kv_heads,
             .block_size = block_size,
             .head_dim = head_dim},
        keys(static_cast<size_t>(view.num_bytes()), '\x5a'),
        values(keys),
        key_scales(static_cast<size_t>(view.num_rows()), -7.0F),
        value_scales(key_scales),
        expected_keys(keys),
        expected_values(keys),
        expected_key_scales(key_scales),
        expected_value_scales(key_scales) {
    view.keys = keys.data();
    view.values = values.data();
    if (dtype != DType::kI8) return;
    view.key_scales = key_scales.data();
    view.value_scales = value_scales.data();
  }

  void Expect(int64_t slot, const float* k, const float* v) {
    const size_t element = SizeOf(view.dtype);
    for (int64_t head = 0; head < view.num_kv_heads; ++head) {
      const StoredHead key = Store(k + head * view.head_dim, view.head_dim, view.dtype);
      const StoredHead value = Store(v + head * view.head_dim, view.head_dim, view.dtype);
      const int64_t block = slot / view.block_size * view.num_kv_heads + head;
      const int64_t offset = slot % view.block_size;
      for (int64_t d = 0; d < view.head_dim; ++d) {
        const int64_t key_at = (block * view.head_dim + d) * view.block_size + offset;
        const int64_t value_at = (block * view.block_size + offset) * view.head_dim + d;
        const auto i = static_cast<size_t>(d);
        std::memcpy(expected_keys.data() + static_cast<size_t>(key_at) * element, &key.bits[i],
                    element);
        std::memcpy(expected_values.data() + static_cast<size_t>(value_at) * element,
                    &value.bits[i], element);
      }
      if (view.dtype != DType::kI8) continue;
      expected_key_scales[static_cast<size_t>(block * view.block_size + offset)] = key.scale;
      expected_value_scales[static_cast<size_t>(block * view.block_size + offset)] = value.scale;
    }
  }

  void Check() const {
    EXPECT_EQ(keys, expected_keys)
        << "head_dim " << view.head_dim << " block_size " << view.block_size;
    EXPECT_EQ(values, expected_values);
    EXPECT_EQ(key_scales, expected_key_scales);
    EXPECT_EQ(value_scales, expected_value_scales);
  }

  KvCacheView view;
  std::vector<char> keys;
  std::vector<char> values;
  std::vector<float> key_scales;
  std::vector<float> value_scales;
  std::vector<char> expected_keys;
  std::vector<char> expected_values;
  std::vector<float> expected_key_scales;
  std::vector<float> expected_value_scales;
};

class KvAppendTest : public ::testing::TestWithParam<std::tuple<DType, Isa>> {
 protected:
  void SetUp() override {
    const Isa isa = std::get<1>(GetParam());
    if (isa > HostCpuFeatures().Best()) GTEST_SKIP() << "this machine has no " << ToString(isa);
  }
  ThreadPool pool_{2};
};

TEST_P(KvAppendTest, WritesEachHeadToItsSlotAndNothingElse) {
  const auto [dtype, isa] = GetParam();
  Random random(1);
  for (const int64_t head_dim : {1, 7, 8, 20, 64}) {
    for (const int64_t block_size : {1, 3, 16}) {
      const int64_t num_blocks = 60 / block_size;
      Caches caches(dtype, num_blocks, 3, block_size, head_dim);
      const int64_t k_stride = 3 * head_dim + 2;
      const int64_t v_stride = 3 * head_dim + 5;
      const std::vector<int32_t> slots = {17, 0, static_cast<int32_t>(num_blocks * block_size - 1),
                                          18, 2};
      const auto num_tokens = static_cast<int64_t>(slots.size());
      const std::vector<float> k = random.Normals(num_tokens * k_stride);
      const std::vector<float> v = random.Normals(num_tokens * v_stride);
      for (int64_t token = 0; token < num_tokens; ++token) {
        caches.Expect(slots[static_cast<size_t>(token)], k.data() + token * k_stride,
                      v.data() + token * v_stride);
      }
      KvAppend(caches.view,
               {.num_tokens = num_tokens,
                .k = k.data(),
                .k_stride = k_stride,
                .v = v.data(),
                .v_stride = v_stride,
                .slot_mapping = slots.data()},
               isa, &pool_);
      caches.Check();
    }
  }
}

// Many tokens, so that threads share them, with heads that are rotated in part.
TEST_P(KvAppendTest, RotatesAndWritesInOnePass) {
  const auto [dtype, isa] = GetParam();
  Random random(3);
  for (const int64_t num_tokens : {1, 700}) {
    const int64_t head_dim = 20;
    const RopeTable table = MakeRopeTable({.rotary_dim = 16}, 1000, &pool_);
    const int64_t stride = 8 * head_dim + 1;
    std::vector<float> qkv = random.Normals(num_tokens * stride);
    std::vector<int32_t> positions;
    std::vector<int32_t> slots;
    for (int64_t i = 0; i < num_tokens; ++i) {
      positions.push_back(static_cast<int32_t>(random.Int(0, 999)));
      slots.push_back(static_cast<int32_t>(num_tokens - 1 - i));
    }
    std::vector<float> expected = qkv;
    ApplyRope(table,
              {.num_tokens = num_tokens,
               .positions = positions.data(),
               .x = expected.data(),
               .x_stride = stride,
               .num_heads = 6,
               .head_dim = head_dim},
              Isa::kRef, &pool_);
    Caches caches(dtype, (num_tokens + 15) / 16, 2, 16, head_dim);
    for (int64_t i = 0; i < num_tokens; ++i) {
      const float* k = expected.data() + i * stride + 4 * head_dim;
      caches.Expect(slots[static_cast<size_t>(i)], k, k + 2 * head_dim);
    }
    RopeKvAppend(table, caches.view,
                 {.num_tokens = num_tokens,
                  .q = qkv.data(),
                  .k = qkv.data() + 4 * head_dim,
                  .v = qkv.data() + 6 * head_dim,
                  .stride = stride,
                  .num_heads = 4,
                  .positions = positions.data(),
                  .slot_mapping = slots.data()},
                 isa, &pool_);
    caches.Check();
    EXPECT_EQ(qkv, expected);
  }
}

TEST_P(KvAppendTest, WhatIsNotFiniteShowsInItsHeadAlone) {
  const auto [dtype, isa] = GetParam();
  if (dtype != DType::kI8) GTEST_SKIP() << "floats keep what is not finite";
  for (const float fault :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Caches caches(dtype, 2, 2, 4, 8);
    std::vector<float> k(16, 1.0F);
    std::vector<float> v(16, 2.0F);
    k[3] = fault;
    v[11] = -fault;
    const int32_t slot = 5;
    KvAppend(caches.view,
             {.num_tokens = 1,
              .k = k.data(),
              .k_stride = 16,
              .v = v.data(),
              .v_stride = 16,
              .slot_mapping = &slot},
             isa, &pool_);
    // Block 1, offset 1: rows 9 (head 0) and 13 (head 1).
    EXPECT_TRUE(std::isnan(caches.key_scales[9]));
    EXPECT_EQ(caches.key_scales[13], 1.0F / 127.0F);
    EXPECT_EQ(caches.value_scales[9], 2.0F / 127.0F);
    EXPECT_TRUE(std::isnan(caches.value_scales[13]));
    for (size_t d = 0; d < 8; ++d) EXPECT_EQ(caches.keys[(2 * 8 + d) * 4 + 1], 0);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Types, KvAppendTest,
    ::testing::Combine(::testing::Values(DType::kF32, DType::kBf16, DType::kF16, DType::kI8),
                       ::testing::Values(Isa::kRef, Isa::kAvx2, Isa::kAvx512Vnni, Isa::kAmx)));

TEST(KvConvertTest, VectorsRoundAsTheReferenceForAllKindsOfFloats) {
  if (HostCpuFeatures().Best() < Isa::kAvx2) GTEST_SKIP() << "this machine has no AVX2";
  std::vector<float> in = {0.0F,
                           -0.0F,
                           65504.0F,
                           65519.9F,
                           65520.0F,
                           -65520.0F,
                           3.4e38F,
                           1e-8F,
                           5.9604645e-8F,
                           2.9802322e-8F,
                           6.1e-5F,
                           std::numeric_limits<float>::infinity(),
                           -std::numeric_limits<float>::infinity()};
  for (const uint32_t nan : {0x7f800001U, 0x7fc00000U, 0xffc12345U, 0x7fffffffU, 0xff800001U}) {
    in.push_back(std::bit_cast<float>(nan));
  }
  // Every exponent with mantissas around the ties of both types.
  for (uint32_t high = 0; high < 0x10000; high += 0x40) {
    for (const uint32_t low : {0U, 1U, 0x7fffU, 0x8000U, 0x8001U, 0x18000U, 0x1000U, 0x3000U}) {
      in.push_back(std::bit_cast<float>((high << 16) + low));
    }
  }
  Random random(2);
  for (int i = 0; i < 100003; ++i) in.push_back(std::bit_cast<float>(random.Bits()));
  const auto count = static_cast<int64_t>(in.size());
  std::vector<uint16_t> expected(in.size());
  std::vector<uint16_t> actual(in.size());
  ref::ConvertToBf16(in.data(), expected.data(), count);
  avx2::ConvertToBf16(in.data(), actual.data(), count);
  for (size_t i = 0; i < in.size(); ++i) {
    ASSERT_EQ(actual[i], expected[i]) << std::hex << std::bit_cast<uint32_t>(in[i]);
  }
  ref::ConvertToF16(in.data(), expected.data(), count);
  avx2::ConvertToF16(in.data(), actual.data(), count);
  for (size_t i = 0; i < in.size(); ++i) {
    ASSERT_EQ(actual[i], expected[i]) << std::hex << std::bit_cast<uint32_t>(in[i]);
  }
}

}  // namespace
}  // namespace nibble::kernels
