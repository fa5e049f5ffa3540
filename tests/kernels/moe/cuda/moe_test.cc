// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/moe/cuda/moe.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"

#include "engine/moe/expert_layout.h"
#include "tests/kernels/device/device_rows.h"
#include "tests/testing/compare.h"
#include "tests/testing/random.h"

namespace nibble::kernels::cuda {
namespace {

using ::nibble::testing::AllEqual;
using ::nibble::testing::DeviceTest;
using ::nibble::testing::Random;
using ::nibble::testing::RoundTo;
using ::nibble::testing::Rows;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

class DeviceRoute : public DeviceTest {
 protected:
  void ExpectTheCpus(const std::vector<float>& logits, int64_t num_experts, int64_t k,
                     bool renormalize) {
    const auto num_tokens = static_cast<int64_t>(logits.size()) / num_experts;
    const auto n = static_cast<size_t>(num_tokens * k);
    RouteArgs args{.num_tokens = num_tokens,
                   .num_experts = num_experts,
                   .num_experts_per_tok = k,
                   .renormalize = renormalize};
    std::vector<int32_t> ids(n);
    std::vector<float> weights(n);
    args.logits = logits.data();
    args.expert_ids = ids.data();
    args.weights = weights.data();
    ThreadPool pool(1);
    kernels::Route(args, Isa::kRef, &pool);

    const auto device_logits = Upload(logits);
    const auto device_ids = Upload(std::vector<int32_t>(n, -5));
    const auto device_weights = Upload(std::vector<float>(n, -5.0F));
    args.logits = device_logits.data();
    args.expert_ids = device_ids.data();
    args.weights = device_weights.data();
    ASSERT_TRUE(Route(args, stream_.get()).ok());
    EXPECT_EQ(Download(device_ids), ids) << num_experts << " experts, " << k << " of them";
    EXPECT_TRUE(AllEqual<float>({Download(device_weights).data(), num_tokens, k, k},
                                {weights.data(), num_tokens, k, k}))
        << num_experts << " experts, " << k << " of them";
  }
};

TEST_F(DeviceRoute, IsTheCpusToTheBit) {
  Random random(1);
  for (const int64_t num_experts : {1, 2, 8, 15, 16, 17, 33, 60, 128, 1024}) {
    for (const int64_t k : {1, 2, 6, 8, 40}) {
      if (k > num_experts) continue;
      for (const bool renormalize : {true, false}) {
        ExpectTheCpus(random.Normals(7 * num_experts, 3.0F), num_experts, k, renormalize);
      }
    }
  }
  ExpectTheCpus(random.Normals(2 * 65), 65, 65, true);
}

TEST_F(DeviceRoute, TiesNaNsAndInfinities) {
  const std::vector<std::vector<float>> rows = {
      {0.0F, 0.0F, 0.0F, 0.0F, 0.0F, 0.0F},
      {1.0F, 2.0F, 2.0F, 1.0F, 2.0F, -1.0F},
      {0.0F, -0.0F, 0.0F, -0.0F, -1.0F, -0.0F},
      {kNaN, 1.0F, 2.0F, 3.0F, -kInfinity, 0.0F},
      {kNaN, kNaN, kNaN, kNaN, kNaN, kNaN},
      {-kNaN, -kInfinity, kNaN, -kInfinity, 1.0F, -1e30F},
      {kInfinity, 1.0F, 2.0F, kInfinity, 0.0F, 0.0F},
      {-kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity},
      {-kInfinity, 5.0F, -kInfinity, -kInfinity, -kInfinity, -kInfinity},
      {1e30F, -1e30F, 1e-40F, -1e-40F, 0.0F, 90.0F},
  };
  std::vector<float> logits;
  for (const auto& row : rows) logits.insert(logits.end(), row.begin(), row.end());
  for (const int64_t k : {1, 3, 6}) {
    for (const bool renormalize : {true, false}) ExpectTheCpus(logits, 6, k, renormalize);
  }
}

TEST_F(DeviceRoute, RefusesWhatItHasNot) {
  EXPECT_EQ(Route({.num_experts = 1025, .num_experts_per_tok = 1}, stream_.get()).message(),
            "there are 1025 experts, the limits are 1 and 1024");
  EXPECT_EQ(Route({.num_experts = 8, .num_experts_per_tok = 9}, stream_.get()).message(),
            "tokens go to 9 experts, the limits are 1 and 8");
  EXPECT_TRUE(Route({.num_experts = 8, .num_experts_per_tok = 2}, stream_.get()).ok());
}

class DeviceChooseSlots : public DeviceTest {};

TEST_F(DeviceChooseSlots, TakesTheCopyThatTheLayoutSays) {
  // Experts 0, 2 and 3 have 1, 3 and 2 copies.
  const engine::ExpertLayout layout{
      .num_experts = 4, .num_slots = 7, .expert_of_slot = {2, 0, 3, 2, 1, 3, 2}};
  const engine::SlotTable table(layout, 0);
  constexpr int64_t kMaxCopies = 3;
  std::vector<int32_t> num_copies(4, 0);
  std::vector<int32_t> slots(4 * kMaxCopies, -1);
  for (int32_t slot = 0; slot < 7; ++slot) {
    const int32_t e = layout.expert_of_slot[static_cast<size_t>(slot)];
    slots[static_cast<size_t>(e * kMaxCopies + num_copies[static_cast<size_t>(e)]++)] = slot;
  }
  constexpr int64_t kTokens = 300;
  Random random(2);
  std::vector<int32_t> positions;
  std::vector<int32_t> expert_ids;
  std::vector<int32_t> expected;
  std::vector<uint64_t> load = {5, 0, 0, uint64_t{1} << 40};
  const std::vector<uint64_t> load_before = load;
  for (int64_t token = 0; token < kTokens; ++token) {
    const bool padding = token % 50 == 49;
    positions.push_back(padding ? -1 : static_cast<int32_t>(random.Int(0, 100000)));
    for (int j = 0; j < 2; ++j) {
      const auto e = static_cast<int32_t>(random.Int(0, 3));
      expert_ids.push_back(e);
      expected.push_back(padding ? -1 : table.SlotOf(e, positions.back()));
      load[static_cast<size_t>(e)] += padding ? 0 : 1;
    }
  }
  const auto device_positions = Upload(positions);
  const auto device_experts = Upload(expert_ids);
  const auto device_copies = Upload(num_copies);
  const auto device_slots = Upload(slots);
  const auto device_load = Upload(load_before);
  for (const bool with_load : {true, false}) {
    const auto slot_ids = Upload(std::vector<int32_t>(expected.size(), -9));
    ASSERT_TRUE(ChooseSlots({.num_tokens = kTokens,
                             .num_experts_per_tok = 2,
                             .expert_ids = device_experts.data(),
                             .positions = device_positions.data(),
                             .num_copies = device_copies.data(),
                             .slots = device_slots.data(),
                             .max_copies = kMaxCopies,
                             .slot_ids = slot_ids.data(),
                             .load = with_load ? device_load.data() : nullptr},
                            stream_.get())
                    .ok());
    EXPECT_EQ(Download(slot_ids), expected);
    EXPECT_EQ(Download(device_load), load);
  }
}

class DevicePermute : public DeviceTest {
 protected:
  void ExpectTheCpus(const std::vector<int32_t>& slot_ids, int64_t k, int32_t first_slot,
                     int32_t num_slots) {
    PermuteArgs args{.num_tokens = static_cast<int64_t>(slot_ids.size()) / k,
                     .num_experts_per_tok = k,
                     .first_slot = first_slot,
                     .num_slots = num_slots};
    std::vector<int32_t> offsets(static_cast<size_t>(num_slots) + 1);
    std::vector<int32_t> tokens(slot_ids.size(), -7);
    std::vector<int32_t> row_of(slot_ids.size());
    args.slot_ids = slot_ids.data();
    args.offsets = offsets.data();
    args.token_of_row = tokens.data();
    args.row_of = row_of.data();
    kernels::Permute(args);

    const auto device_slots = Upload(slot_ids);
    const auto device_offsets = Upload(std::vector<int32_t>(offsets.size(), -7));
    const auto device_tokens = Upload(std::vector<int32_t>(slot_ids.size(), -7));
    const auto device_rows = Upload(std::vector<int32_t>(slot_ids.size(), -7));
    args.slot_ids = device_slots.data();
    args.offsets = device_offsets.data();
    args.token_of_row = device_tokens.data();
    args.row_of = device_rows.data();
    ASSERT_TRUE(Permute(args, stream_.get()).ok());
    const auto what = ::testing::Message()
                      << slot_ids.size() << " in slots " << first_slot << " + " << num_slots;
    EXPECT_EQ(Download(device_offsets), offsets) << what;
    EXPECT_EQ(Download(device_tokens), tokens) << what;
    EXPECT_EQ(Download(device_rows), row_of) << what;
  }
};

TEST_F(DevicePermute, IsTheCpusCountingSort) {
  Random random(3);
  // Around a thread's 4, and a block's 2048 at a time.
  for (const int64_t num_tokens : {0, 1, 2, 5, 127, 1024, 1025, 2500}) {
    for (const int32_t num_slots : {1, 8, 13}) {
      std::vector<int32_t> slots;
      for (int64_t i = 0; i < 2 * num_tokens; ++i) {
        slots.push_back(static_cast<int32_t>(random.Int(0, num_slots - 1)));
      }
      ExpectTheCpus(slots, 2, 0, num_slots);
      ExpectTheCpus(slots, 2, num_slots / 2, num_slots - num_slots / 2);
      ExpectTheCpus(slots, 1, 3, 2);
      ExpectTheCpus(slots, 2, 1, 0);
    }
  }
}

TEST_F(DevicePermute, AllInOneSlotAndPadding) {
  ExpectTheCpus(std::vector<int32_t>(3000, 4), 3, 0, 8);
  ExpectTheCpus(std::vector<int32_t>(3000, 4), 3, 4, 1);
  ExpectTheCpus({0, 1, -1, -1, 2, 0, -1, -1}, 2, 0, 3);
  ExpectTheCpus({0, 1, -1, -1, 2, 0, -1, -1}, 2, 1, 3);
}

TEST_F(DevicePermute, RefusesWhatItHasNot) {
  EXPECT_EQ(
      Permute({.num_tokens = int64_t{1} << 31, .num_experts_per_tok = 2}, stream_.get()).message(),
      "2147483648 tokens of 2 experts each, the limit of both together is 2147481599");
  EXPECT_EQ(Permute({.num_experts_per_tok = 2, .num_slots = -1}, stream_.get()).code(),
            absl::StatusCode::kInvalidArgument);
}

class DeviceCombine : public ::nibble::testing::RowsTest {};

TEST_F(DeviceCombine, IsTheCpusToTheBit) {
  Random random(4);
  for (const int64_t hidden : {8, 104, 1024, 1032}) {
    for (const int64_t k : {1, 2, 8, 11}) {
      for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16}) {
        for (const bool accumulate : {false, true}) {
          const int64_t num_tokens = 5;
          const int64_t n = num_tokens * k;
          const Rows y = MakeRows(dtype, n, hidden, hidden + 8, random.Normals(n * hidden));
          std::vector<int32_t> row_of(static_cast<size_t>(n));
          std::iota(row_of.begin(), row_of.end(), 0);
          for (size_t i = row_of.size(); i > 1; --i) {
            std::swap(row_of[i - 1], row_of[random.Bits() % i]);
          }
          for (int32_t& row : row_of) row = random.Int(0, 3) == 0 ? -1 : row;
          // A token of which nothing is here.
          std::fill_n(row_of.begin() + 2 * k, k, -1);
          const std::vector<float> weights = random.Normals(n);
          const auto device_rows = Upload(row_of);
          const auto device_weights = Upload(weights);

          const DType out_type = accumulate ? DType::kF32 : dtype;
          Rows out = MakeRows(out_type, num_tokens, hidden, hidden + 16,
                              random.Normals(num_tokens * hidden));
          std::vector<float> expected = out.values;
          ThreadPool pool(1);
          kernels::Combine({.num_tokens = num_tokens,
                            .num_experts_per_tok = k,
                            .hidden = hidden,
                            .weights = weights.data(),
                            .row_of = row_of.data(),
                            .y = y.values.data(),
                            .y_stride = y.stride,
                            .accumulate = accumulate,
                            .out = expected.data(),
                            .out_stride = out.stride},
                           Isa::kRef, &pool);
          for (float& value : expected) value = RoundTo(out_type, value);
          ASSERT_TRUE(Combine({.num_tokens = num_tokens,
                               .num_experts_per_tok = k,
                               .hidden = hidden,
                               .weights = device_weights.data(),
                               .row_of = device_rows.data(),
                               .y = y.View(),
                               .accumulate = accumulate,
                               .out = out.View()},
                              stream_.get())
                          .ok());
          Read(&out);
          EXPECT_TRUE(AllEqual<float>({out.values.data(), num_tokens, hidden, out.stride},
                                      {expected.data(), num_tokens, hidden, out.stride}))
              << hidden << " columns of " << k;
        }
      }
    }
  }
}

TEST_F(DeviceCombine, RefusesWhatItHasNot) {
  EXPECT_EQ(
      Combine({.num_tokens = 1, .num_experts_per_tok = 2, .hidden = 12}, stream_.get()).message(),
      "hidden is 12, wanted is a multiple of 8, 1048576 at most");
  EXPECT_EQ(
      Combine({.num_tokens = 1, .num_experts_per_tok = 0, .hidden = 16}, stream_.get()).message(),
      "tokens go to 0 experts, the limits are 1 and 1024");
}

}  // namespace
}  // namespace nibble::kernels::cuda
