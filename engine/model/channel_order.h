// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Act-order: quantizers that take input channels in the order of their activations store for each
// channel which group of scales it belongs to (g_idx). Sorted by group, the matrix is one of plain
// groups again, whose column c reads input channel order[c]; the activations are brought into that
// order before they are multiplied.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "engine/model/safetensors.h"
#include "engine/model/shard.h"
#include "kernels/quant/int4_weight.h"

namespace nibble::engine {

// A module's 4-bit weights with the codes that the checkpoint holds.
struct StoredInt4 {
  kernels::Int4Weight weight;
  // Column c of `weight` reads input channel channel_order[c]; empty: in order.
  std::vector<int32_t> channel_order;
};

// Channels by group, rising within a group; empty when they lie so already. INVALID_ARGUMENT,
// naming the tensor, for another type or a group out of range; UNIMPLEMENTED for groups of unequal
// sizes. All -1 counts as "in order", as in the compressed-tensors package.
absl::StatusOr<std::vector<int32_t>> OrderByGroup(const TensorView& g_idx, int64_t group_size);

// Sorts the columns of a module's share by group: sets channel_order, and reorders the codes, which
// were read in order. `group_size` is the module's. As OrderByGroup; UNIMPLEMENTED, naming the
// tensor, too for columns in another order when the share has not all of them: the groups of a part
// lie all over the matrix.
absl::Status SortByGroup(const TensorView& g_idx, const MatrixShare& share, int64_t group_size,
                         StoredInt4* stored, ThreadPool* pool);

// Column c becomes what column order[c] was. Scales and zero points stay: they are by group.
void ReorderCodes(const std::vector<int32_t>& order, kernels::Int4Weight* weight, ThreadPool* pool);

}  // namespace nibble::engine
