// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/kv/kv_cache.h"

#include <bit>
#include <cstring>
#include <limits>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"

#include "base/cpu_features.h"
#include "base/float16.h"
#include "kernels/kv/kv_convert.h"
#include "tests/testing/random.h"

namespace nibble::kernels {
namespace {

using ::nibble::testing::Random;

uint32_t BitsOf(float value, DType dtype) {
  if (dtype == DType::kBf16) return ToBFloat16(value).bits;
  if (dtype == DType::kF16) return ToFloat16(value).bits;
  return std::bit_cast<uint32_t>(value);
}

class KvAppendTest : public ::testing::TestWithParam<std::tuple<DType, Isa>> {};

TEST_P(KvAppendTest, WritesEachHeadToItsSlotAndNothingElse) {
  const auto [dtype, isa] = GetParam();
  if (isa > HostCpuFeatures().Best()) GTEST_SKIP() << "this machine has no " << ToString(isa);
  const size_t element = SizeOf(dtype);
  Random random(1);
  for (const int64_t head_dim : {1, 7, 8, 20, 64}) {
    for (const int64_t block_size : {1, 3, 16}) {
      const int64_t num_kv_heads = 3;
      const int64_t num_blocks = 60 / block_size;
      const int64_t columns = num_kv_heads * head_dim;
      const int64_t k_stride = columns + 2;
      const int64_t v_stride = columns + 5;
      const std::vector<int32_t> slots = {17, 0, static_cast<int32_t>(num_blocks * block_size - 1),
                                          18, 2};
      const auto num_tokens = static_cast<int64_t>(slots.size());
      const std::vector<float> k = random.Normals(num_tokens * k_stride);
      const std::vector<float> v = random.Normals(num_tokens * v_stride);
      const auto bytes = static_cast<size_t>(num_blocks * columns * block_size) * element;
      std::vector<char> keys(bytes, '\x5a');
      std::vector<char> values(bytes, '\x5a');
      std::vector<char> expected_keys = keys;
      std::vector<char> expected_values = values;
      for (int64_t token = 0; token < num_tokens; ++token) {
        const int64_t slot = slots[static_cast<size_t>(token)];
        for (int64_t i = 0; i < columns; ++i) {
          const int64_t index =
              ((slot / block_size * num_kv_heads + i / head_dim) * block_size + slot % block_size) *
                  head_dim +
              i % head_dim;
          const uint32_t key = BitsOf(k[static_cast<size_t>(token * k_stride + i)], dtype);
          const uint32_t value = BitsOf(v[static_cast<size_t>(token * v_stride + i)], dtype);
          std::memcpy(expected_keys.data() + static_cast<size_t>(index) * element, &key, element);
          std::memcpy(expected_values.data() + static_cast<size_t>(index) * element, &value,
                      element);
        }
      }
      ThreadPool pool(2);
      KvAppend({.keys = keys.data(),
                .values = values.data(),
                .dtype = dtype,
                .num_blocks = num_blocks,
                .num_kv_heads = num_kv_heads,
                .block_size = block_size,
                .head_dim = head_dim},
               {.num_tokens = num_tokens,
                .k = k.data(),
                .k_stride = k_stride,
                .v = v.data(),
                .v_stride = v_stride,
                .slot_mapping = slots.data()},
               isa, &pool);
      EXPECT_EQ(keys, expected_keys) << "head_dim " << head_dim << " block_size " << block_size;
      EXPECT_EQ(values, expected_values);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Types, KvAppendTest,
    ::testing::Combine(::testing::Values(DType::kF32, DType::kBf16, DType::kF16),
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
