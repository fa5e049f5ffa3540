// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The same linear layer of many experts: those that a rank has slots for (expert_layout.h). Rows
// come sorted by slot (kernels/moe/permute.h) and each is multiplied by the weights of its slot.
//
// This and moe_layer.h lie here, not in engine/moe: they are made of Linear and are part of
// DecoderLayer, while engine/moe says where experts are, which the scheduler's side reads too.
#pragma once

#include <cstdint>
#include <vector>

#include "base/thread_pool.h"
#include "engine/model/linear.h"
#include "kernels/gemm/grouped_gemm.h"

namespace nibble::engine {

struct GroupedInput {
  const int32_t* offsets = nullptr;  // [num_slots + 1]: slot s has rows offsets[s].. of y
  const int32_t* a_rows = nullptr;   // row i of y reads row a_rows[i] of `rows`; null: row i
  LinearInput rows;                  // in the forms that the layer takes; `reordered` is not used
  // Scratch for layers that reorder their input channels: [offsets[num_slots]] rows with a stride
  // of k or more.
  kernels::QuantizedRows reordered;
};

// Immutable after loading.
class GroupedLinear {
 public:
  GroupedLinear() = default;
  // One layer per slot of this rank. REQUIRES: one or more, all of one n and k, none with a bias.
  explicit GroupedLinear(std::vector<Linear> slots);

  int64_t num_slots() const { return static_cast<int64_t>(slots_.size()); }
  int64_t n() const { return slots_.front().n(); }
  int64_t k() const { return slots_.front().k(); }
  // Some slot does.
  bool takes_int8() const { return takes_int8_; }
  bool takes_floats() const { return takes_floats_; }
  bool reorders() const { return !reordered_.empty(); }
  int64_t size_bytes() const;
  const std::vector<Linear>& slots() const { return slots_; }

  // y [offsets[num_slots], n], contiguous. A row's bits are those of Linear::Run of its slot.
  void Run(const GroupedInput& input, float* y, ThreadPool* pool) const;

 private:
  // Weights that read their input channels in an order of their own, at most one of each slot.
  struct Reordered {
    std::vector<kernels::GroupWeight> weights;
    std::vector<const std::vector<int32_t>*> order_of_slot;  // [num_slots]; null: none of the slot
  };
  static void Reorder(const Reordered& weights, const GroupedInput& input, ThreadPool* pool);

  std::vector<Linear> slots_;
  std::vector<kernels::GroupWeight> in_order_;
  std::vector<Reordered> reordered_;
  bool takes_int8_ = false;
  bool takes_floats_ = false;
};

}  // namespace nibble::engine
