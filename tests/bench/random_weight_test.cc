// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/random_weight.h"

#include <cmath>
#include <cstring>
#include <set>

#include "gtest/gtest.h"

#include "bench/gemm_subject.h"

namespace nibble::bench {
namespace {

float ToFloat(uint16_t bits) {
  const uint32_t wide = uint32_t{bits} << 16;
  float value = 0.0F;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

TEST(RandomWeightTest, Bf16IsOfBothSignsAndSmall) {
  std::vector<uint16_t> values(1001);
  FillRandomBf16(values, 1);
  int num_negative = 0;
  for (const uint16_t bits : values) {
    const float value = ToFloat(bits);
    EXPECT_GE(std::abs(value), 0x1p-9F);
    EXPECT_LT(std::abs(value), 0x1p-5F);
    num_negative += value < 0.0F ? 1 : 0;
  }
  EXPECT_GT(num_negative, 400);
  EXPECT_LT(num_negative, 600);
  EXPECT_GT(std::set<uint16_t>(values.begin(), values.end()).size(), 300U);
}

TEST(RandomWeightTest, BytesOfAnySizeAreFilledAndNoMore) {
  for (size_t size : {0, 1, 7, 8, 9, 17}) {
    std::vector<uint8_t> bytes(size + 8, 0xA5);
    FillRandomBytes({bytes.data(), size}, 2);
    for (size_t i = size; i < bytes.size(); ++i) EXPECT_EQ(bytes[i], 0xA5) << size;
  }
}

// Packed twice they are the same product; another seed is another one.
TEST(RandomWeightTest, ValuesAreTheSeeds) {
  ThreadPool pool(1);
  const Isa isa = HostCpuFeatures().Best();
  const kernels::CpuWeightPacker packer(isa);
  for (const WeightKind& kind : WeightKinds()) {
    kernels::GemmDesc desc = kind.desc;
    desc.n = 19;
    desc.k = 200;
    const auto product = [&](const RandomWeight& weight) {
      GemmActivations activations(2, desc.n, desc.k, &pool);
      const kernels::GemmArgs args = activations.args();
      const auto packed = weight.Pack(packer, &pool);
      EXPECT_TRUE(packed.ok()) << kind.name << ": " << packed.status();
      if (packed.ok()) kernels::Run(**packed, args, &pool);
      return std::vector<float>(args.d, args.d + 2 * desc.n);
    };
    const RandomWeight weight(desc, 3);
    const std::vector<float> first = product(weight);
    EXPECT_EQ(product(weight), first) << kind.name;
    EXPECT_NE(product(RandomWeight(desc, 4)), first) << kind.name;
  }
}

}  // namespace
}  // namespace nibble::bench
