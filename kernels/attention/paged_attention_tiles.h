// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The blocked form of paged_attention.h, for any instruction set's tile functions.
#pragma once

#include <cstdint>

#include "kernels/attention/attention_tile.h"
#include "kernels/attention/paged_attention.h"

namespace nibble::kernels {

struct TileFunctions {
  void (*pack)(const PackTileArgs& args);
  void (*attend)(const AttendTileArgs& args);
};

// Memory for the states of segments that are shared out over the threads: 8 MiB, or one state of
// each thread where that is more. The calling thread keeps what it needed.
inline constexpr int64_t kMaxStateFloats = int64_t{2} << 20;

void PagedAttentionTiles(const KvCacheView& cache, const PagedAttentionArgs& args,
                         const TileFunctions& functions, ThreadPool* pool,
                         int64_t max_state_floats = kMaxStateFloats);

}  // namespace nibble::kernels
