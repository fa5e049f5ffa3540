// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One layer of many experts gives each row what the layer of its expert would, however each of
// these is stored.

#include "engine/model/grouped_linear.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/quant/int8_weight.h"
#include "kernels/quant/rtn.h"
#include "tests/engine/model/model_runner.h"
#include "tests/testing/compare.h"
#include "tests/testing/random.h"

namespace nibble::engine {
namespace {

constexpr int64_t kN = 48;
constexpr int64_t kK = 256;

// A part of kN / 2 output channels.
class PartMaker {
 public:
  PartMaker(Isa isa, ThreadPool* pool) : isa_(isa), pool_(pool), random_(3) {}

  Linear::Part Dense() {
    return {Packed(kernels::PackDense(Weights().data(), DType::kF32, kN / 2, kK, DType::kF32, isa_,
                                      pool_)),
            {}};
  }
  Linear::Part Int4(std::vector<int32_t> channel_order = {}) {
    auto weight = kernels::QuantizeRtn(Weights().data(), kN / 2, kK, {}, pool_);
    EXPECT_TRUE(weight.ok()) << weight.status();
    return {Packed(kernels::PackInt4(*weight, kernels::ScaleForm::kFolded, isa_, pool_)),
            std::move(channel_order)};
  }
  Linear::Part Int8() {
    auto weight = kernels::QuantizeInt8(Weights().data(), kN / 2, kK, pool_);
    EXPECT_TRUE(weight.ok()) << weight.status();
    return {Packed(kernels::PackInt8(*weight, isa_, pool_)), {}};
  }
  std::vector<int32_t> Shuffled() {
    std::vector<int32_t> order(kK);
    std::iota(order.begin(), order.end(), 0);
    for (int64_t i = kK - 1; i > 0; --i) {
      std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(random_.Int(0, i))]);
    }
    return order;
  }

 private:
  static std::unique_ptr<kernels::PackedWeight> Packed(
      absl::StatusOr<std::unique_ptr<kernels::PackedWeight>> weight) {
    EXPECT_TRUE(weight.ok()) << weight.status();
    return *std::move(weight);
  }
  std::vector<float> Weights() { return random_.Normals(kN / 2 * kK, 0.1F); }

  Isa isa_;
  ThreadPool* pool_;
  testing::Random random_;
};

std::vector<Linear::Part> Both(Linear::Part a, Linear::Part b) {
  std::vector<Linear::Part> parts;
  parts.push_back(std::move(a));
  parts.push_back(std::move(b));
  return parts;
}

// Every form, forms beside each other, and channels in one order, in two, in the order of one half
// alone.
std::vector<Linear> MakeSlots(Isa isa, ThreadPool* pool) {
  PartMaker make(isa, pool);
  std::vector<Linear> slots;
  slots.emplace_back(Both(make.Dense(), make.Dense()), std::vector<float>());
  slots.emplace_back(Both(make.Int4(), make.Int8()), std::vector<float>());
  slots.emplace_back(Both(make.Int4(make.Shuffled()), make.Int4(make.Shuffled())),
                     std::vector<float>());
  slots.emplace_back(Both(make.Int8(), make.Dense()), std::vector<float>());
  slots.emplace_back(Both(make.Dense(), make.Int4(make.Shuffled())), std::vector<float>());
  return slots;
}

class GroupedLinearTest : public ::testing::TestWithParam<Isa> {};

TEST_P(GroupedLinearTest, RowsAreThoseOfTheirSlots) {
  constexpr int64_t kInputs = 7;
  ThreadPool pool(2);
  testing::Random random(5);
  const std::vector<float> x = random.Normals(kInputs * kK);
  const ActivationForms all_forms = {.floats = true, .int8 = true, .reordered = true};
  ActivationBuffer activations;
  activations.Allocate(kInputs, kK, all_forms);
  const LinearInput input = activations.For(kK, all_forms);
  std::copy(x.begin(), x.end(), input.values);
  kernels::QuantizeRows(x.data(), kK, kInputs, kK, input.quantized, GetParam(), &pool);

  const std::vector<Linear> singles = MakeSlots(GetParam(), &pool);
  const GroupedLinear grouped(MakeSlots(GetParam(), &pool));
  EXPECT_EQ(grouped.num_slots(), 5);
  EXPECT_EQ(grouped.n(), kN);
  EXPECT_EQ(grouped.k(), kK);
  EXPECT_TRUE(grouped.takes_int8() && grouped.takes_floats() && grouped.reorders());
  int64_t size_bytes = 0;
  for (const Linear& single : singles) size_bytes += single.size_bytes();
  EXPECT_EQ(grouped.size_bytes(), size_bytes);

  // Slots with no row, one and several; inputs that several rows read, and in any order.
  const std::vector<std::vector<int32_t>> offset_cases = {
      {0, 2, 3, 6, 6, 9}, {0, 0, 0, 9, 9, 9}, {0, 0, 0, 0, 0, 0}, {0, 1, 2, 3, 4, 5}};
  const std::vector<int32_t> rows = {4, 1, 6, 0, 2, 4, 4, 5, 3};
  for (const std::vector<int32_t>& offsets : offset_cases) {
    for (const bool gathers : {true, false}) {
      if (!gathers && offsets.back() > kInputs) continue;
      QuantizedRowsBuffer reordered;
      reordered.Allocate(offsets.back(), kK);
      std::vector<float> got(static_cast<size_t>((offsets.back() + 1) * kN), -7.0F);
      grouped.Run({.offsets = offsets.data(),
                   .a_rows = gathers ? rows.data() : nullptr,
                   .rows = input,
                   .reordered = reordered.For(kK)},
                  got.data(), &pool);
      std::vector<float> want(got.size(), -7.0F);
      for (size_t slot = 0; slot < singles.size(); ++slot) {
        std::vector<float> all(static_cast<size_t>(kInputs * kN));
        singles[slot].Run(input, kInputs, all.data(), &pool);
        for (int64_t row = offsets[slot]; row < offsets[slot + 1]; ++row) {
          const int64_t source = gathers ? rows[static_cast<size_t>(row)] : row;
          std::copy_n(all.begin() + source * kN, kN, want.begin() + row * kN);
        }
      }
      EXPECT_TRUE(testing::SameBits(got, want)) << "rows " << offsets.back();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, GroupedLinearTest, ::testing::ValuesIn(testing::HostIsas()),
                         testing::IsaName);

}  // namespace
}  // namespace nibble::engine
