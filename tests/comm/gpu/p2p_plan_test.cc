// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/gpu/p2p_plan.h"

#include <algorithm>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/float16.h"
#include "comm/choose_policy.h"
#include "comm/gpu/device_policy.h"
#include "comm/gpu/p2p_self_test.h"
#include "tests/comm/codec/codec_cases.h"
#include "tests/comm/gpu/device_ranks.h"

namespace nibble::comm {
namespace {

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

// What every plan must fit into, whatever the size.
TEST(P2pPlan, EveryMessageHasAPlanThatFits) {
  for (const CodecDesc& codec : AllCodecs()) {
    for (int ranks = 1; ranks <= 8; ++ranks) {
      for (const int64_t rows : {1, 3, 64, 4096}) {
        for (const int64_t row_size : {1, 31, 4096, 8193}) {
          for (const Algorithm algorithm : {Algorithm::kOneShot, Algorithm::kTwoShot}) {
            const P2pLimits limits = {ranks, 132, MinRegionBytes(ranks)};
            const RowGroups groups = {row_size, codec.group_size};
            const auto plan = PlanMessage(
                {.codec = codec, .groups = groups, .num_rows = rows, .algorithm = algorithm},
                limits);
            ASSERT_TRUE(plan.ok()) << plan.status();
            ASSERT_EQ(plan->num_groups, rows * groups.groups_per_row());
            ASSERT_GE(plan->num_units * plan->unit_groups, plan->num_groups);
            ASSERT_LT((plan->num_units - 1) * plan->unit_groups, plan->num_groups);
            ASSERT_GE(plan->num_parts() * plan->part_units, plan->num_units);
            ASSERT_LE(ranks * plan->part_units * plan->slot_bytes, limits.region_bytes);
            ASSERT_GE(plan->slot_groups * (plan->two_shot ? ranks : 1), plan->unit_groups);
            ASSERT_GE(plan->num_blocks, 1);
            ASSERT_LE(plan->num_blocks, 132);
            ASSERT_EQ(plan->num_threads % 32, 0);
            ASSERT_LE(plan->num_threads, 256);
            ASSERT_TRUE(plan->two_shot || algorithm == Algorithm::kOneShot);
            ASSERT_TRUE(plan->two_shot || plan->num_parts() == 1);
          }
        }
      }
    }
  }
}

// Codes are read and written 16 bytes at a time.
TEST(P2pPlan, RegionsLieAtWholeLines) {
  for (int ranks = 1; ranks <= 8; ++ranks) {
    for (const int64_t max_values : {int64_t{0}, int64_t{1}, int64_t{1001}, int64_t{1} << 40}) {
      const int64_t bytes = P2pRegionBytes(ranks, max_values);
      EXPECT_EQ(bytes % 128, 0) << ranks << " ranks, " << max_values << " values";
      EXPECT_GE(bytes, MinRegionBytes(ranks) + 4 * std::min<int64_t>(max_values, 4 << 20));
      EXPECT_LT(bytes, int64_t{32} << 20);
    }
  }
}

TEST(P2pPlan, SmallMessagesGoToManyBlocksAndLargeOnesFillThem) {
  const P2pLimits limits = {4, 100, int64_t{64} << 20};
  const auto plan = [&](int64_t rows, Algorithm algorithm) {
    return *PlanMessage(
        {.codec = {.bits = 4}, .groups = {8192, 128}, .num_rows = rows, .algorithm = algorithm},
        limits);
  };
  EXPECT_EQ(plan(1, Algorithm::kOneShot).num_blocks, 8);  // a warp's 8 groups of 64 each
  EXPECT_EQ(plan(16, Algorithm::kOneShot).num_blocks, 94);
  EXPECT_EQ(plan(16, Algorithm::kOneShot).num_threads, 64);
  EXPECT_EQ(plan(2048, Algorithm::kTwoShot).num_blocks, 100);
  EXPECT_EQ(plan(2048, Algorithm::kTwoShot).num_threads, 256);
}

TEST(P2pPlan, WholeRows) {
  const P2pMessage message = {
      .codec = {.bits = 4}, .groups = {4100, 128}, .num_rows = 7, .whole_rows = true};
  const auto plan =
      PlanMessage(message, {.num_ranks = 2, .max_blocks = 4, .region_bytes = int64_t{1} << 20});
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->unit_groups, 33);
  EXPECT_EQ(plan->num_units, 7);
  EXPECT_EQ(plan->slot_groups, 17);
  EXPECT_EQ(plan->num_blocks, 4);
  const absl::Status too_small =
      PlanMessage(message, {.num_ranks = 2, .max_blocks = 4, .region_bytes = 100}).status();
  EXPECT_EQ(too_small.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(too_small.message()), ::testing::HasSubstr("the limit is 100"));
}

TEST(P2pPlan, Bf16RowsTravelAsTheyAreWhereNothingMayBeRounded) {
  EXPECT_EQ(DeviceCodec({.bits = 4}, false, true).bits, 4);
  EXPECT_EQ(DeviceCodec({.bits = 4}, true, true).bits, 16);
  EXPECT_EQ(DeviceCodec({.bits = 4}, true, false).bits, 32);
  EXPECT_EQ(DeviceCodec({.bits = 32}, false, true).bits, 16);
  EXPECT_EQ(DeviceCodec({.bits = 16}, false, false).bits, 16);
  EXPECT_EQ(DeviceCodec({.bits = 16}, true, false).bits, 32);
}

TEST(DevicePolicy, IsTotalAndKeepsTheHostsCodecs) {
  for (int ranks = 2; ranks <= 8; ++ranks) {
    for (const AllReducePolicy& host :
         {HostPolicy({.bits = 32}, ranks), HostPolicy({.bits = 4}, ranks),
          AllReducePolicy{{{1000, Algorithm::kTwoShot, {.bits = 16}},
                           {kNoLimit, Algorithm::kOneShot, {.bits = 5}}}}}) {
      const AllReducePolicy policy = UnmeasuredDevicePolicy(host, ranks);
      ASSERT_TRUE(policy.Validate().ok()) << ToString(policy);
      for (int64_t bytes = 1; bytes < int64_t{1} << 40; bytes = bytes * 3 + 1) {
        EXPECT_EQ(policy.For(bytes).codec, host.For(bytes).codec) << ToString(policy);
      }
      EXPECT_EQ(policy.For(1).algorithm, Algorithm::kOneShot);
      EXPECT_EQ(policy.For(kNoLimit).algorithm, Algorithm::kTwoShot);
    }
  }
}

// Devices whose codecs cost 5 us and whose link carries 20 GB/s: narrow codes for large messages.
TEST(DevicePolicy, IsMeasuredOverTheDevicesTimes) {
  const auto group = ThreadGroup(2, {.mode = AllReduceOptions::Mode::kNone});
  std::vector<std::string> policies(2);
  OnRanks(group, [&](int rank, Communicator* host, ThreadPool*) {
    const auto time = [&](const AllReduceChoice& choice, int64_t bytes) -> absl::StatusOr<double> {
      const double steps = choice.algorithm == Algorithm::kTwoShot ? 2 : 1;
      const double codes = static_cast<double>(bytes) * EffectiveBits(choice.codec) / 16;
      const double noise = rank == 0 ? 1 : 100;  // only rank 0's times count
      return noise * (steps * 3e-6 + (choice.codec.is_integer() ? 5e-6 : 0) +
                      codes * (steps == 2 ? 1.0 : 1.5) / 20e9);
    };
    const auto policy = MeasureDevicePolicy(
        {.codec = {.group_size = 128}, .min_bytes = 8192, .max_bytes = int64_t{64} << 20}, host,
        time);
    ASSERT_TRUE(policy.ok()) << policy.status();
    policies[static_cast<size_t>(rank)] = Serialize(*policy);
    EXPECT_EQ(policy->For(8192).codec.bits, 16) << ToString(*policy);
    EXPECT_EQ(policy->For(8192).algorithm, Algorithm::kOneShot) << ToString(*policy);
    EXPECT_EQ(policy->For(int64_t{32} << 20).codec.bits, 4) << ToString(*policy);
    EXPECT_EQ(policy->For(int64_t{32} << 20).algorithm, Algorithm::kTwoShot) << ToString(*policy);
  });
  EXPECT_EQ(policies[0], policies[1]);
}

// The sums that devices are held against are sums.
TEST(P2pSelfTest, KnowsRightFromWrong) {
  constexpr int64_t kRowSize = 40;
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    const SelfTestCase test = {.codec = {.bits = dtype == DType::kBf16 ? 16 : 32, .group_size = 32},
                               .dtype = dtype};
    std::vector<float> sums(kSelfTestRows * kRowSize);
    for (int r = 0; r < 3; ++r) {
      const std::vector<float> input = SelfTestInput(r, kRowSize, dtype);
      for (size_t i = 0; i < sums.size(); ++i) sums[i] += input[i];
    }
    if (dtype == DType::kBf16) {
      EXPECT_FALSE(CheckSelfTest(test, 3, kRowSize, sums).ok()) << "sums that are not rounded";
      for (float& x : sums) x = ToFloat(ToBFloat16(x));
    }
    EXPECT_TRUE(CheckSelfTest(test, 3, kRowSize, sums).ok());
    sums[77] = 0.0F;
    const absl::Status status = CheckSelfTest(test, 3, kRowSize, sums);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("value 77)"));
  }
}

// What messages of either type take, by either algorithm.
TEST(P2pSelfTest, HasTheCodecsOfBothTypes) {
  const std::vector<SelfTestCase> cases = SelfTestCases(HostPolicy({.bits = 4}, 2));
  const auto has = [&](Algorithm algorithm, int bits, DType dtype) {
    return std::any_of(cases.begin(), cases.end(), [&](const SelfTestCase& test) {
      return test.algorithm == algorithm && test.codec.bits == bits && test.dtype == dtype;
    });
  };
  for (const Algorithm algorithm : {Algorithm::kOneShot, Algorithm::kTwoShot}) {
    EXPECT_TRUE(has(algorithm, 32, DType::kF32));
    EXPECT_TRUE(has(algorithm, 16, DType::kBf16));
    EXPECT_TRUE(has(algorithm, 4, DType::kF32));
    EXPECT_TRUE(has(algorithm, 4, DType::kBf16));
  }
  EXPECT_EQ(cases.size(), 8U);
}

}  // namespace
}  // namespace nibble::comm
