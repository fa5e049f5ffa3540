// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The loop of ops that compute each row on its own.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/thread_pool.h"

namespace nibble::kernels {

// Calls body(begin, end) over pieces of [0, num_rows). A piece has 64 KB of floats, some
// microseconds of work: less does not pay for waking a thread, so that a few rows stay on the
// calling one.
template <typename Body>
void ForRows(ThreadPool* pool, int64_t num_rows, int64_t row_elements, const Body& body) {
  constexpr int64_t kPieceElements = 16384;
  const int64_t grain = std::max<int64_t>(1, kPieceElements / std::max<int64_t>(1, row_elements));
  if (num_rows <= grain) {
    if (num_rows > 0) body(int64_t{0}, num_rows);
    return;
  }
  pool->ParallelFor(num_rows, grain, body);
}

}  // namespace nibble::kernels
