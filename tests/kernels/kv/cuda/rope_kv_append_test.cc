// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/kv/cuda/kv_cache.h"
#include "kernels/norm/rms_norm.h"
#include "kernels/rope/rope.h"
#include "tests/kernels/device/device_rows.h"
#include "tests/testing/compare.h"
#include "tests/testing/random.h"

namespace nibble::kernels::cuda {
namespace {

using ::nibble::testing::AllEqual;
using ::nibble::testing::AllWithin;
using ::nibble::testing::Decode;
using ::nibble::testing::Int8Rows;
using ::nibble::testing::Random;
using ::nibble::testing::RoundTo;
using ::nibble::testing::Rows;

constexpr int64_t kMaxPositions = 50;

struct Shape {
  int64_t num_heads = 1;
  int64_t num_kv_heads = 1;
  int64_t head_dim = 64;
  int64_t rotary_dim = 64;
  int64_t block_size = 16;
};

class DeviceRopeKvAppend : public ::nibble::testing::RowsTest {
 protected:
  static constexpr int64_t kNumBlocks = 5;
  static constexpr float kEpsilon = 1e-4F;

  struct Cache {
    Rows keys;  // f32 and bf16: [num_blocks * num_kv_heads * block_size, head_dim]
    Rows values;
    Int8Rows keys8;
    Int8Rows values8;
    KvCacheView view;
  };
  Cache MakeCache(const Shape& shape, DType dtype) {
    Cache cache;
    const int64_t rows = kNumBlocks * shape.num_kv_heads * shape.block_size;
    cache.view = {.dtype = dtype,
                  .num_blocks = kNumBlocks,
                  .num_kv_heads = shape.num_kv_heads,
                  .block_size = shape.block_size,
                  .head_dim = shape.head_dim};
    if (dtype == DType::kI8) {
      cache.keys8 = MakeInt8Output(rows, shape.head_dim, shape.head_dim);
      cache.values8 = MakeInt8Output(rows, shape.head_dim, shape.head_dim);
      cache.view.keys = cache.keys8.device_values.data();
      cache.view.values = cache.values8.device_values.data();
      cache.view.key_scales = cache.keys8.device_scales.data();
      cache.view.value_scales = cache.values8.device_scales.data();
    } else {
      cache.keys = MakeOutput(dtype, rows, shape.head_dim, shape.head_dim);
      cache.values = MakeOutput(dtype, rows, shape.head_dim, shape.head_dim);
      cache.view.keys = cache.keys.bytes.data();
      cache.view.values = cache.values.bytes.data();
    }
    return cache;
  }

  // Norm and rotation of the CPU ops, on floats, in place.
  void OnCpu(const Shape& shape, const std::vector<int32_t>& positions,
             const std::vector<float>& q_norm, const std::vector<float>& k_norm, Rows* qkv) {
    for (int64_t head = 0; head < shape.num_heads + shape.num_kv_heads; ++head) {
      const std::vector<float>& weight = head < shape.num_heads ? q_norm : k_norm;
      float* const x = qkv->values.data() + head * shape.head_dim;
      if (!weight.empty()) {
        kernels::RmsNorm({.num_rows = qkv->rows,
                          .hidden = shape.head_dim,
                          .x = x,
                          .x_stride = qkv->stride,
                          .weight = weight.data(),
                          .epsilon = kEpsilon,
                          .y = x,
                          .y_stride = qkv->stride},
                         Isa::kRef, &pool_);
      }
      ApplyRope(table_,
                {.num_tokens = qkv->rows,
                 .positions = positions.data(),
                 .x = x,
                 .x_stride = qkv->stride,
                 .num_heads = 1,
                 .head_dim = shape.head_dim},
                Isa::kRef, &pool_);
    }
  }

  // Compares what was appended of one kind. Slots that nobody named keep their canaries (NaN).
  void ExpectAppended(const Shape& shape, const Rows& qkv, int64_t first_head,
                      const std::vector<int32_t>& slots, Rows* stored, double tolerance) {
    Read(stored);
    std::vector<float> expected(stored->values.size(), std::numeric_limits<float>::quiet_NaN());
    for (int64_t token = 0; token < qkv.rows; ++token) {
      const int32_t slot = slots[static_cast<size_t>(token)];
      if (slot < 0 || slot >= kNumBlocks * shape.block_size) continue;
      for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
        for (int64_t i = 0; i < shape.head_dim; ++i) {
          expected[static_cast<size_t>(CacheRow(shape, slot, head) * shape.head_dim + i)] =
              RoundTo(stored->dtype, qkv.Row(token)[(first_head + head) * shape.head_dim + i]);
        }
      }
    }
    EXPECT_TRUE(
        AllWithin<float>({stored->values.data(), stored->rows, shape.head_dim, shape.head_dim},
                         {expected.data(), stored->rows, shape.head_dim, shape.head_dim},
                         [tolerance](int64_t, int64_t) { return tolerance; }));
  }
  void ExpectAppended(const Shape& shape, const Rows& qkv, int64_t first_head,
                      const std::vector<int32_t>& slots, Int8Rows* stored) {
    Read(stored);
    for (int64_t token = 0; token < qkv.rows; ++token) {
      const int32_t slot = slots[static_cast<size_t>(token)];
      for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
        // As an Int8Rows of one row.
        const int64_t row = CacheRow(shape, slot, head);
        const auto begin = stored->values.begin() + row * shape.head_dim;
        Int8Rows one{.rows = 1, .columns = shape.head_dim, .stride = shape.head_dim};
        one.values.assign(begin, begin + shape.head_dim);
        one.scales = {stored->scales[static_cast<size_t>(row)]};
        one.sums = {std::accumulate(one.values.begin(), one.values.end(), int32_t{0})};
        const float* const from = qkv.Row(token) + (first_head + head) * shape.head_dim;
        ExpectQuantized(one, std::vector<float>(from, from + shape.head_dim), shape.head_dim, 1);
      }
    }
  }
  static int64_t CacheRow(const Shape& shape, int64_t slot, int64_t head) {
    return (slot / shape.block_size * shape.num_kv_heads + head) * shape.block_size +
           slot % shape.block_size;
  }

  void MakeTable(int64_t rotary_dim) {
    table_ = MakeRopeTable({.rotary_dim = rotary_dim}, kMaxPositions, &pool_);
    cos_ = Upload(table_.cos);
    sin_ = Upload(table_.sin);
  }

  // Five tokens, without norms.
  void ExpectCpuBits(const Shape& shape, DType activation, DType dtype, Random* random) {
    const std::vector<int32_t> positions = {0, 7, 49, 3, 21};
    const auto last = static_cast<int32_t>(kNumBlocks * shape.block_size - 1);
    const std::vector<int32_t> slots = {4, last, 0, 11, 5};
    const int64_t columns = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim;
    Rows qkv = MakeRows(activation, 5, columns, columns + 8, random->Normals(5 * columns));
    Rows expected{.dtype = activation, .rows = 5, .columns = columns, .stride = qkv.stride};
    expected.values = qkv.values;
    OnCpu(shape, positions, {}, {}, &expected);

    Cache cache = MakeCache(shape, dtype);
    const auto device_positions = Upload(positions);
    const auto device_slots = Upload(slots);
    const absl::Status status = RopeKvAppend(cache.view,
                                             {.num_tokens = 5,
                                              .qkv = qkv.View(),
                                              .num_heads = shape.num_heads,
                                              .cos = cos_.data(),
                                              .sin = sin_.data(),
                                              .rotary_dim = shape.rotary_dim,
                                              .positions = device_positions.data(),
                                              .slot_mapping = device_slots.data()},
                                             stream_.get());
    ASSERT_TRUE(status.ok()) << status;

    const int64_t k_head = shape.num_heads;
    const int64_t v_head = shape.num_heads + shape.num_kv_heads;
    if (dtype == DType::kI8) {
      ExpectAppended(shape, expected, k_head, slots, &cache.keys8);
      ExpectAppended(shape, expected, v_head, slots, &cache.values8);
    } else {
      ExpectAppended(shape, expected, k_head, slots, &cache.keys, 0.0);
      ExpectAppended(shape, expected, v_head, slots, &cache.values, 0.0);
    }
    // Queries are rotated, the rest is as it was.
    std::vector<float> after = qkv.values;
    for (int64_t token = 0; token < 5; ++token) {
      for (int64_t i = 0; i < shape.num_heads * shape.head_dim; ++i) {
        after[static_cast<size_t>(token * qkv.stride + i)] =
            RoundTo(activation, expected.Row(token)[i]);
      }
    }
    Read(&qkv);
    EXPECT_TRUE(AllEqual<float>({qkv.values.data(), 5, columns, qkv.stride},
                                {after.data(), 5, columns, qkv.stride}));
  }

  ThreadPool pool_{1};
  RopeTable table_;
  gpu::DeviceBuffer<float> cos_;
  gpu::DeviceBuffer<float> sin_;
};

// Without norms everything is the CPU's to the bit: rotations, rounding, codes and scales.
TEST_F(DeviceRopeKvAppend, IsTheCpuOpsToTheBit) {
  Random random(1);
  const Shape shapes[] = {
      {.num_heads = 3, .num_kv_heads = 1, .head_dim = 64, .rotary_dim = 64},
      {.num_heads = 4, .num_kv_heads = 2, .head_dim = 128, .rotary_dim = 128, .block_size = 8},
      {.num_heads = 1, .num_kv_heads = 1, .head_dim = 8, .rotary_dim = 4},
      {.num_heads = 2, .num_kv_heads = 2, .head_dim = 96, .rotary_dim = 48},
      {.num_heads = 2, .num_kv_heads = 1, .head_dim = 80, .rotary_dim = 20, .block_size = 3},
      {.num_heads = 2, .num_kv_heads = 1, .head_dim = 256, .rotary_dim = 128},
      {.num_heads = 0, .num_kv_heads = 3, .head_dim = 72, .rotary_dim = 0},
  };
  for (const Shape& shape : shapes) {
    MakeTable(shape.rotary_dim);
    for (const DType activation : {DType::kF32, DType::kBf16, DType::kF16}) {
      for (const DType dtype : {DType::kF32, DType::kBf16, DType::kI8}) {
        ExpectCpuBits(shape, activation, dtype, &random);
      }
    }
  }
}

TEST_F(DeviceRopeKvAppend, NormsHeads) {
  Random random(2);
  const Shape shape{.num_heads = 3, .num_kv_heads = 2, .head_dim = 72, .rotary_dim = 72};
  MakeTable(shape.rotary_dim);
  const std::vector<int32_t> positions = {5, 49};
  const std::vector<int32_t> slots = {17, 2};
  const auto device_positions = Upload(positions);
  const auto device_slots = Upload(slots);
  const int64_t columns = 7 * shape.head_dim;
  const std::vector<float> weight = random.Normals(shape.head_dim);
  const std::vector<float> other = random.Normals(shape.head_dim);
  const auto q_norm = Upload(weight);
  const auto k_norm = Upload(other);
  for (const bool norm_q : {false, true}) {
    for (const bool norm_k : {false, true}) {
      Rows qkv = MakeRows(DType::kF32, 2, columns, columns, random.Normals(2 * columns));
      Rows expected{.rows = 2, .columns = columns, .stride = columns};
      expected.values = qkv.values;
      OnCpu(shape, positions, norm_q ? weight : std::vector<float>(),
            norm_k ? other : std::vector<float>(), &expected);
      Cache cache = MakeCache(shape, DType::kF32);
      ASSERT_TRUE(RopeKvAppend(cache.view,
                               {.num_tokens = 2,
                                .qkv = qkv.View(),
                                .num_heads = shape.num_heads,
                                .q_norm = norm_q ? q_norm.data() : nullptr,
                                .k_norm = norm_k ? k_norm.data() : nullptr,
                                .epsilon = kEpsilon,
                                .cos = cos_.data(),
                                .sin = sin_.data(),
                                .rotary_dim = shape.rotary_dim,
                                .positions = device_positions.data(),
                                .slot_mapping = device_slots.data()},
                               stream_.get())
                      .ok());
      // Elements are below 4 * 4; chains of 8 and 5 additions, as kernels/norm's test derives.
      const double tolerance = 16.0 * (13.0 / 2 + 6 + 3) * 0x1p-24;
      ExpectAppended(shape, expected, 3, slots, &cache.keys, tolerance);
      ExpectAppended(shape, expected, 5, slots, &cache.values, 0.0);
      Read(&qkv);
      const int64_t q_columns = 3 * shape.head_dim;
      EXPECT_TRUE(AllWithin<float>({qkv.values.data(), 2, q_columns, columns},
                                   {expected.values.data(), 2, q_columns, columns},
                                   [&](int64_t, int64_t) { return tolerance; }));
    }
  }
}

// Tokens that are padding of a captured graph, or whose slot is none, write nothing to the cache.
TEST_F(DeviceRopeKvAppend, TokensWithoutASlotLeaveTheCacheAlone) {
  const Shape shape{.num_heads = 1, .num_kv_heads = 2, .head_dim = 64, .rotary_dim = 64};
  MakeTable(shape.rotary_dim);
  const std::vector<int32_t> slots = {-1, 3, 80, INT32_MAX, INT32_MIN, -1};
  const std::vector<int32_t> positions(6, 1);
  const auto device_positions = Upload(positions);
  const auto device_slots = Upload(slots);
  const int64_t columns = 5 * shape.head_dim;
  for (const DType dtype : {DType::kBf16, DType::kI8}) {
    const Rows qkv = MakeRows(DType::kF32, 6, columns, columns, Random(3).Normals(6 * columns));
    Rows expected{.rows = 6, .columns = columns, .stride = columns};
    expected.values = qkv.values;
    OnCpu(shape, positions, {}, {}, &expected);
    Cache cache = MakeCache(shape, dtype);
    ASSERT_TRUE(RopeKvAppend(cache.view,
                             {.num_tokens = 6,
                              .qkv = qkv.View(),
                              .num_heads = shape.num_heads,
                              .cos = cos_.data(),
                              .sin = sin_.data(),
                              .rotary_dim = shape.rotary_dim,
                              .positions = device_positions.data(),
                              .slot_mapping = device_slots.data()},
                             stream_.get())
                    .ok());
    if (dtype == DType::kBf16) {
      ExpectAppended(shape, expected, 1, slots, &cache.keys, 0.0);
      ExpectAppended(shape, expected, 3, slots, &cache.values, 0.0);
    } else {
      Read(&cache.keys8);
      // Two heads of one token.
      EXPECT_EQ(std::count(cache.keys8.scales.begin(), cache.keys8.scales.end(), -7.0F),
                kNumBlocks * 16 * 2 - 2);
    }
  }
}

TEST_F(DeviceRopeKvAppend, AHeadWithANaNIsNaNInInt8) {
  const Shape shape{.num_heads = 0, .num_kv_heads = 2, .head_dim = 64, .rotary_dim = 64};
  MakeTable(shape.rotary_dim);
  std::vector<float> values = Random(4).Normals(256);
  values[70] = std::numeric_limits<float>::quiet_NaN();
  values[130] = std::numeric_limits<float>::infinity();
  const Rows qkv = MakeRows(DType::kF32, 1, 256, 256, values);
  const auto position = Upload(std::vector<int32_t>{0});
  const auto slot = Upload(std::vector<int32_t>{0});
  Cache cache = MakeCache(shape, DType::kI8);
  ASSERT_TRUE(RopeKvAppend(cache.view,
                           {.num_tokens = 1,
                            .qkv = qkv.View(),
                            .cos = cos_.data(),
                            .sin = sin_.data(),
                            .rotary_dim = 64,
                            .positions = position.data(),
                            .slot_mapping = slot.data()},
                           stream_.get())
                  .ok());
  ExpectAppended(shape, qkv, 0, {0}, &cache.keys8);  // position 0: no rotation
  ExpectAppended(shape, qkv, 2, {0}, &cache.values8);
  EXPECT_TRUE(std::isnan(cache.keys8.scales[16]));
  EXPECT_TRUE(std::isnan(cache.values8.scales[0]));
}

TEST_F(DeviceRopeKvAppend, RefusesWhatItHasNot) {
  Cache cache = MakeCache({}, DType::kBf16);
  const auto run = [&](const KvCacheView& view, const RopeKvAppendArgs& args) {
    return RopeKvAppend(view, args, stream_.get());
  };
  KvCacheView view = cache.view;
  view.head_dim = 264;
  EXPECT_EQ(run(view, {}).message(), "head_dim is 264, wanted is a multiple of 8, 256 at most");
  view = cache.view;
  view.dtype = DType::kI8;
  EXPECT_EQ(run(view, {}).message(), "the cache is int8 and has no scales");
  view.dtype = DType::kF16;
  EXPECT_EQ(run(view, {}).message(),
            "the cache's type is float16, wanted is float32, bfloat16 or int8");
  EXPECT_EQ(run(cache.view, {.rotary_dim = 66}).message(),
            "rotary_dim is 66, wanted is an even number up to head_dim, 64");
  EXPECT_EQ(run(cache.view, {.num_tokens = 1, .qkv = {.stride = 128}, .num_heads = 1}).message(),
            "the stride of qkv is 128 elements, wanted are 192 or more of whole 16 bytes");
}

}  // namespace
}  // namespace nibble::kernels::cuda
