// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Loops of different lengths and costs as one parallel loop.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "base/thread_pool.h"

namespace nibble::kernels {

// A loop: units that follow each other in memory and cost the same.
struct WorkItem {
  int64_t units;
  int64_t unit_cost;  // > 0; in whatever all items are measured in
  // Of CutWork: units of a piece, and pieces of all items before.
  int64_t piece_units = 0;
  int64_t first_piece = 0;
};

// Cuts items into pieces of like cost, none of two items: some for each thread, so that a thread
// that lost its core for a while does not hold up the others; not more, because units that follow
// each other stream best. Returns their number.
int64_t CutWork(std::span<WorkItem> items, int64_t num_threads);

// Calls body(item, begin, end) for pieces that cover the units of every item, on all threads.
template <typename Body>
void ForWork(std::span<WorkItem> items, ThreadPool* pool, const Body& body) {
  const int64_t num_pieces = CutWork(items, pool->num_threads());
  pool->ParallelFor(num_pieces, 1, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      const auto after = std::upper_bound(
          items.begin(), items.end(), piece,
          [](int64_t value, const WorkItem& item) { return value < item.first_piece; });
      const int64_t i = after - items.begin() - 1;
      const WorkItem& item = items[static_cast<size_t>(i)];
      const int64_t begin = (piece - item.first_piece) * item.piece_units;
      body(i, begin, std::min(begin + item.piece_units, item.units));
    }
  });
}

}  // namespace nibble::kernels
