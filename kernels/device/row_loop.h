// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The loop of ops that compute each row on its own.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/thread_pool.h"

namespace nibble::kernels {

// Elements a thread takes at a time: 64 KB of floats, some microseconds of work. Less does not pay
// for waking a thread.
inline constexpr int64_t kPieceElements = 16384;

// Calls body(begin, end) over pieces of [0, num_rows). One piece's rows, and a single row of
// whatever length, stay on the calling thread.
template <typename Body>
void ForRows(ThreadPool* pool, int64_t num_rows, int64_t row_elements, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, kPieceElements / std::max<int64_t>(1, row_elements));
  if (num_rows <= grain) {
    if (num_rows > 0) body(int64_t{0}, num_rows);
    return;
  }
  pool->ParallelFor(num_rows, grain, body);
}

}  // namespace nibble::kernels
