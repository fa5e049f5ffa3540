// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/work_list.h"

namespace nibble::kernels {
namespace {

constexpr int64_t kPiecesPerThread = 8;

}  // namespace

int64_t CutWork(std::span<WorkItem> items, int64_t num_threads) {
  int64_t cost = 0;
  for (const WorkItem& item : items) cost += item.units * item.unit_cost;
  const int64_t piece_cost = std::max<int64_t>(1, cost / (kPiecesPerThread * num_threads));
  int64_t num_pieces = 0;
  for (WorkItem& item : items) {
    const int64_t wanted = std::clamp<int64_t>(item.units * item.unit_cost / piece_cost, 1,
                                               std::max<int64_t>(1, item.units));
    item.piece_units = std::max<int64_t>(1, (item.units + wanted - 1) / wanted);
    item.first_piece = num_pieces;
    num_pieces += (item.units + item.piece_units - 1) / item.piece_units;
  }
  return num_pieces;
}

}  // namespace nibble::kernels
