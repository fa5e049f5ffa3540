// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The blocked form of paged_attention.h, for any instruction set's tile functions.
#pragma once

#include "kernels/attention/attention_tile.h"
#include "kernels/attention/paged_attention.h"

namespace nibble::kernels {

struct TileFunctions {
  void (*pack)(const PackTileArgs& args);
  void (*attend)(const AttendTileArgs& args);
};

void PagedAttentionTiles(const KvCacheView& cache, const PagedAttentionArgs& args,
                         const TileFunctions& functions, ThreadPool* pool);

}  // namespace nibble::kernels
