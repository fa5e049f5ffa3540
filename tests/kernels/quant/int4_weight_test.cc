// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/quant/int4_weight.h"

#include <cmath>
#include <limits>

#include "gtest/gtest.h"

namespace nibble::kernels {
namespace {

Int4Weight Make(int64_t n, int64_t k, int64_t group, std::vector<float> scales) {
  Int4Weight weight;
  weight.n = n;
  weight.k = k;
  weight.group_size = group;
  weight.codes.assign(static_cast<size_t>(n * weight.row_bytes()), 0x5f);
  weight.scales = std::move(scales);
  return weight;
}

TEST(Int4Weight, CodesZerosAndValues) {
  Int4Weight weight = Make(1, 3, 2, {2.0F, -4.0F});
  weight.codes = {0x5f, 0x01};
  EXPECT_EQ(weight.Code(0, 0), 15);
  EXPECT_EQ(weight.Code(0, 1), 5);
  EXPECT_EQ(weight.Dequantize(0, 0), 14.0F);
  EXPECT_EQ(weight.Dequantize(0, 2), 28.0F);
  weight.zero_points = {0, 3};
  EXPECT_EQ(weight.Dequantize(0, 2), 8.0F);
}

TEST(Int4Weight, ValidateNamesWhatIsWrong) {
  const auto message = [](const Int4Weight& weight) {
    const absl::Status status = weight.Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  const Int4Weight good = Make(2, 5, 4, {1, 1, 1, 1});
  EXPECT_TRUE(good.Validate().ok()) << good.Validate();
  Int4Weight bad = good;
  bad.codes.pop_back();
  EXPECT_NE(message(bad).find("codes has 5 elements, its shape needs 6"), std::string::npos);
  bad = good;
  bad.scales.push_back(1.0F);
  EXPECT_NE(message(bad).find("scales"), std::string::npos);
  bad = good;
  bad.scales[3] = std::numeric_limits<float>::infinity();
  EXPECT_NE(message(bad).find("scale [1, 1] is inf"), std::string::npos);
  bad = good;
  bad.zero_points = {0, 1, 16, 3};
  EXPECT_NE(message(bad).find("zero point [1, 0] is 16, the limit is 15"), std::string::npos);
  bad = good;
  bad.group_size = 0;
  EXPECT_NE(message(bad).find("group_size is 0"), std::string::npos);
  bad = good;
  bad.n = -1;
  EXPECT_NE(message(bad).find("n is -1"), std::string::npos);
  bad = good;
  bad.k = std::numeric_limits<int64_t>::max();
  EXPECT_NE(message(bad).find("k is 9223372036854775807"), std::string::npos);
}

TEST(FindFoldedScales, TakesTheLargestChannelScale) {
  auto folded = FindFoldedScales(Make(3, 8, 4, {0.5F, 1.5F, 0.1F, 1.6F, 0.0F, 0.0F}));
  ASSERT_TRUE(folded.ok()) << folded.status();
  EXPECT_EQ(folded->integers, (std::vector<int8_t>{1, 3, 1, 16, 1, 1}));
  EXPECT_FLOAT_EQ(folded->channel[0], 0.5F);
  EXPECT_FLOAT_EQ(folded->channel[1], 0.1F);
  EXPECT_EQ(folded->channel[2], 0.0F);
}

TEST(FindFoldedScales, NegativeScalesGiveNegativeIntegers) {
  auto folded = FindFoldedScales(Make(3, 8, 4, {-0.5F, 0.75F, -1.5F, -0.1F, 1.6F, -1.5F}));
  ASSERT_TRUE(folded.ok()) << folded.status();
  EXPECT_EQ(folded->integers, (std::vector<int8_t>{-2, 3, -15, -1, 16, -15}));
  EXPECT_FLOAT_EQ(folded->channel[0], 0.25F);
  EXPECT_FLOAT_EQ(folded->channel[1], 0.1F);
  EXPECT_FLOAT_EQ(folded->channel[2], 0.1F);
}

TEST(FindFoldedScales, ToleranceIsRelativeToEachScale) {
  const std::vector<float> near = {1.0F, 3.0F * (1.0F + 5e-6F)};
  EXPECT_TRUE(FindFoldedScales(Make(1, 8, 4, near)).ok());
  EXPECT_FALSE(FindFoldedScales(Make(1, 8, 4, near), 1e-6F).ok());
}

TEST(FindFoldedScales, RefusesWhatDoesNotFoldAndNamesTheChannel) {
  for (const std::vector<float>& scales : {std::vector<float>{1.0F, 1.5F, 1.0F, 17.0F},
                                           {1.0F, 1.0F, 1.0F, 1.03F},
                                           {1.0F, 1.0F, 1.0F, -16.0F},
                                           {1.0F, 1.0F, -1.0F, -1.03F},
                                           {1.0F, 1.0F, 1.0F, 0.0F},
                                           {1.0F, 1.0F, -16.0F, -15.0F}}) {
    const absl::Status status = FindFoldedScales(Make(2, 8, 4, scales)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_NE(status.message().find("output channel 1"), absl::string_view::npos) << status;
  }
  Int4Weight with_zeros = Make(1, 8, 4, {1.0F, 1.0F});
  with_zeros.zero_points = {8, 8};
  EXPECT_EQ(FindFoldedScales(with_zeros).status().code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace nibble::kernels
