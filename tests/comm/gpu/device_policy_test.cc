// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/gpu/device_policy.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/comm/gpu/device_ranks.h"

namespace nibble::comm {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Mode = AllReduceOptions::Mode;

TEST(DevicePolicyTest, WhatFailsOnOneRankEndsTheMeasurementOfAll) {
  const auto group = ThreadGroup(3, {.mode = Mode::kNone});
  OnRanks(group, [&](int rank, Communicator* host, ThreadPool*) {
    int calls = 0;
    const auto policy =
        MeasureDevicePolicy({.min_bytes = 1024, .max_bytes = 4096}, host,
                            [&](const AllReduceChoice&, int64_t) -> absl::StatusOr<double> {
                              if (++calls == 4 && rank == 1)
                                return absl::InternalError("no more events");
                              return 1e-6;
                            });
    EXPECT_EQ(calls, 4);
    EXPECT_EQ(policy.status().code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(policy.status().message()), HasSubstr("rank 1: no more events"));
    std::vector<int> ranks(3);
    EXPECT_TRUE(host->AllGather(&rank, sizeof(rank), ranks.data()).ok());
    EXPECT_THAT(ranks, ElementsAre(0, 1, 2));
  });
}

TEST(DevicePolicyTest, TimesOfRankZeroDecide) {
  const auto group = ThreadGroup(2, {.mode = Mode::kNone});
  OnRanks(group, [&](int rank, Communicator* host, ThreadPool*) {
    const auto policy =
        MeasureDevicePolicy({.min_bytes = 1024, .max_bytes = 2048}, host,
                            [&](const AllReduceChoice& choice, int64_t) -> absl::StatusOr<double> {
                              const bool is_int8 = choice.codec.bits == 8;
                              return (rank == 0) == is_int8 ? 1e-6 : 1.0;
                            });
    ASSERT_TRUE(policy.ok()) << policy.status();
    EXPECT_EQ(policy->For(2048).codec.bits, 8);
  });
}

}  // namespace
}  // namespace nibble::comm
