// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/grouped_linear.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace nibble::engine {

GroupedLinear::GroupedLinear(std::vector<Linear> slots) : slots_(std::move(slots)) {
  NIBBLE_CHECK(!slots_.empty());
  for (size_t slot = 0; slot < slots_.size(); ++slot) {
    const Linear& linear = slots_[slot];
    NIBBLE_CHECK_EQ(linear.n(), n());
    NIBBLE_CHECK_EQ(linear.k(), k());
    NIBBLE_CHECK(!linear.has_bias());
    takes_int8_ = takes_int8_ || linear.takes_int8();
    takes_floats_ = takes_floats_ || linear.takes_floats();
    int64_t column = 0;
    size_t num_reordered = 0;
    for (const Linear::Part& part : linear.parts()) {
      const kernels::GroupWeight weight = {
          .weight = part.weight.get(), .group = static_cast<int32_t>(slot), .column = column};
      column += part.weight->desc().n;
      if (part.channel_order.empty()) {
        in_order_.push_back(weight);
        continue;
      }
      if (num_reordered == reordered_.size()) {
        reordered_.push_back({.weights = {}, .order_of_slot = {slots_.size(), nullptr}});
      }
      Reordered& reordered = reordered_[num_reordered++];
      reordered.weights.push_back(weight);
      reordered.order_of_slot[slot] = &part.channel_order;
    }
  }
}

int64_t GroupedLinear::size_bytes() const {
  int64_t bytes = 0;
  for (const Linear& linear : slots_) bytes += linear.size_bytes();
  return bytes;
}

void GroupedLinear::Run(const GroupedInput& input, float* y, ThreadPool* pool) const {
  kernels::GroupedGemmArgs args = {.num_groups = num_slots(),
                                   .offsets = input.offsets,
                                   .a_rows = input.a_rows,
                                   .a = input.rows.values,
                                   .a_stride = input.rows.stride,
                                   .a8 = input.rows.quantized,
                                   .d = y,
                                   .d_stride = n()};
  if (!in_order_.empty()) kernels::RunGrouped(in_order_, args, pool);
  args.a_rows = nullptr;
  args.a8 = input.reordered;
  for (const Reordered& reordered : reordered_) {
    Reorder(reordered, input, pool);
    kernels::RunGrouped(reordered.weights, args, pool);
  }
}

// Row i of input.reordered is the row of the activations that row i of y reads, its channels in the
// order of its slot. Scales and sums of rows do not depend on the order.
void GroupedLinear::Reorder(const Reordered& weights, const GroupedInput& input, ThreadPool* pool) {
  const auto num_slots = static_cast<int64_t>(weights.order_of_slot.size());
  const int32_t* const end_of_offsets = input.offsets + num_slots + 1;
  const kernels::QuantizedRows& in = input.rows.quantized;
  const kernels::QuantizedRows& out = input.reordered;
  pool->ParallelFor(input.offsets[num_slots], 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const auto slot = std::upper_bound(input.offsets, end_of_offsets, row) - input.offsets - 1;
      const std::vector<int32_t>* order = weights.order_of_slot[static_cast<size_t>(slot)];
      if (order == nullptr) continue;
      const int64_t source = input.a_rows == nullptr ? row : int64_t{input.a_rows[row]};
      const int8_t* const from = in.values + source * in.stride;
      int8_t* const to = out.values + row * out.stride;
      for (size_t c = 0; c < order->size(); ++c) to[c] = from[(*order)[c]];
      out.scales[row] = in.scales[source];
      out.sums[row] = in.sums[source];
    }
  });
}

}  // namespace nibble::engine
