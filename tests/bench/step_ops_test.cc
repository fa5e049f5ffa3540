// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/step_ops.h"

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace nibble::bench {
namespace {

constexpr DevicePeaks kPeaks = {
    .read_bytes_per_s = 100.0, .int8_op_per_s = 1000.0, .bf16_op_per_s = 500.0};

TEST(StepOpsTest, AStepIsTakenApart) {
  const DeviceStep step = {
      .seconds = 8.0,
      .ops = {
          {.name = "norm+quantize", .calls = 3, .seconds = 1.0},
          // Bound by memory: 2 s to read, 0.2 s of products.
          {.name = "qkv", .calls = 2, .seconds = 4.0, .bytes = 200.0, .ops = 200.0, .int8 = true},
          // 16 bits: 0.5 s of products.
          {.name = "head", .calls = 1, .seconds = 1.0, .ops = 250.0},
          {.name = "attention", .calls = 2, .seconds = 1.5}}};
  nlohmann::ordered_json row;
  AddStepOps(step, {.cache_bytes = 75.0, .ops = 100.0}, 10.0, kPeaks, &row);
  EXPECT_EQ(row["device_ms"], 8000.0);
  EXPECT_EQ(row["gaps_ms"], 500.0);
  EXPECT_EQ(row["host_ms"], 2000.0);
  EXPECT_EQ(row["share_of_roofline"], 0.325);  // 2 + 0.5 + 0.75 of 10
  const auto& ops = row["ops"];
  ASSERT_EQ(ops.size(), 4U);
  EXPECT_EQ(ops[0]["calls"], 3);
  EXPECT_EQ(ops[0]["us"], 1e6);
  EXPECT_EQ(ops[0]["share_of_step"], 0.1);
  EXPECT_FALSE(ops[0].contains("share_of_read"));
  EXPECT_FALSE(ops[0].contains("share_of_roofline"));
  EXPECT_EQ(ops[1]["share_of_read"], 0.5);
  EXPECT_EQ(ops[1]["share_of_peak"], 0.05);
  EXPECT_EQ(ops[1]["share_of_roofline"], 0.5);
  EXPECT_EQ(ops[2]["share_of_peak"], 0.5);
  EXPECT_EQ(ops[2]["share_of_roofline"], 0.5);
  EXPECT_EQ(ops[3]["share_of_read"], 0.5);
  EXPECT_EQ(ops[3]["share_of_roofline"], 0.5);
}

}  // namespace
}  // namespace nibble::bench
