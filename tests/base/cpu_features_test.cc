// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/cpu_features.h"

#include "gtest/gtest.h"

namespace nibble {
namespace {

CpuFeatures Avx2Machine() {
  CpuFeatures features;
  features.avx2 = true;
  features.name = "test CPU";
  return features;
}

TEST(CpuFeaturesTest, BestIsTheHighestCompleteSet) {
  CpuFeatures features;
  EXPECT_EQ(features.Best(), Isa::kRef);
  features.avx2 = true;
  EXPECT_EQ(features.Best(), Isa::kAvx2);
  features.avx512 = true;  // without VNNI the AVX-512 variants cannot run
  EXPECT_EQ(features.Best(), Isa::kAvx2);
  features.avx512_vnni = true;
  EXPECT_EQ(features.Best(), Isa::kAvx512Vnni);
  features.amx_int8 = true;
  EXPECT_EQ(features.Best(), Isa::kAvx512Vnni);
  features.amx_bf16 = true;
  EXPECT_EQ(features.Best(), Isa::kAmx);
}

TEST(CpuFeaturesTest, ForcedSetBelowTheHostIsTaken) {
  EXPECT_EQ(ChooseIsa(Avx2Machine(), "").value(), Isa::kAvx2);
  EXPECT_EQ(ChooseIsa(Avx2Machine(), "ref").value(), Isa::kRef);
}

TEST(CpuFeaturesTest, ForcedSetAboveTheHostIsAnError) {
  const absl::Status status = ChooseIsa(Avx2Machine(), "avx512vnni").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("avx512vnni"), std::string::npos);
  EXPECT_NE(status.message().find("at most avx2"), std::string::npos);
}

TEST(CpuFeaturesTest, UnknownForcedSetIsAnError) {
  EXPECT_EQ(ChooseIsa(Avx2Machine(), "sse9").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(CpuFeaturesTest, HostHasAName) { EXPECT_FALSE(HostCpuFeatures().name.empty()); }

}  // namespace
}  // namespace nibble
