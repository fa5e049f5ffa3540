// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/channel_order.h"

#include <algorithm>
#include <cstring>

namespace nibble::engine {

absl::StatusOr<std::vector<int32_t>> OrderByGroup(const TensorView& g_idx, int64_t group_size) {
  if (g_idx.dtype != DType::kI32) {
    return InvalidArgument("{}: tensor '{}' is {}, must be int32", g_idx.file, g_idx.name,
                           ToString(g_idx.dtype));
  }
  const int64_t k = g_idx.num_elements();
  const int64_t num_groups = (k + group_size - 1) / group_size;
  std::vector<int32_t> groups(static_cast<size_t>(k));
  std::memcpy(groups.data(), g_idx.bytes.data(), g_idx.bytes.size());
  if (std::all_of(groups.begin(), groups.end(), [](int32_t group) { return group == -1; })) {
    return std::vector<int32_t>();
  }
  std::vector<int64_t> next(static_cast<size_t>(num_groups));  // sizes, then places
  for (size_t i = 0; i < groups.size(); ++i) {
    if (groups[i] < 0 || groups[i] >= num_groups) {
      return InvalidArgument("{}: tensor '{}': element {} is {}, must be a group in 0..{}",
                             g_idx.file, g_idx.name, i, groups[i], num_groups - 1);
    }
    ++next[static_cast<size_t>(groups[i])];
  }
  for (int64_t group = 0; group < num_groups; ++group) {
    const int64_t begin = group * group_size;
    const int64_t size = std::min(group_size, k - begin);
    int64_t& entry = next[static_cast<size_t>(group)];
    if (entry != size) {
      return Unimplemented("{}: tensor '{}': group {} has {} channels, must have {}", g_idx.file,
                           g_idx.name, group, entry, size);
    }
    entry = begin;
  }
  if (std::is_sorted(groups.begin(), groups.end())) return std::vector<int32_t>();
  std::vector<int32_t> order(groups.size());
  for (size_t i = 0; i < groups.size(); ++i) {
    order[static_cast<size_t>(next[static_cast<size_t>(groups[i])]++)] = static_cast<int32_t>(i);
  }
  return order;
}

absl::Status SortByGroup(const TensorView& g_idx, const MatrixShare& share, int64_t group_size,
                         StoredInt4* stored, ThreadPool* pool) {
  NIBBLE_ASSIGN_OR_RETURN(stored->channel_order, OrderByGroup(g_idx, group_size));
  if (stored->channel_order.empty()) return absl::OkStatus();
  if (!share.has_all_columns()) {
    return Unimplemented(
        "{}: tensor '{}': input channels in another order (act-order) cannot be split over ranks; "
        "use one rank, or a checkpoint quantized without act-order",
        g_idx.file, g_idx.name);
  }
  ReorderCodes(stored->channel_order, &stored->weight, pool);
  return absl::OkStatus();
}

void ReorderCodes(const std::vector<int32_t>& order, kernels::Int4Weight* weight,
                  ThreadPool* pool) {
  const int64_t row_bytes = weight->row_bytes();
  pool->ParallelFor(weight->n, 16, [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> stored(static_cast<size_t>(row_bytes));
    for (int64_t row = begin; row < end; ++row) {
      uint8_t* codes = weight->codes.data() + row * row_bytes;
      std::memcpy(stored.data(), codes, stored.size());
      std::fill_n(codes, row_bytes, uint8_t{0});
      for (size_t column = 0; column < order.size(); ++column) {
        const auto source = static_cast<size_t>(order[column]);
        const int code = source % 2 == 0 ? stored[source / 2] & 15 : stored[source / 2] >> 4;
        codes[column / 2] |= static_cast<uint8_t>(column % 2 == 0 ? code : code << 4);
      }
    }
  });
}

}  // namespace nibble::engine
