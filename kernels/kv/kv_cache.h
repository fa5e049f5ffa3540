// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The paged KV cache of one layer, and appending to it.
//
// Keys and values live in blocks of `block_size` token positions; a sequence's block table lists
// its blocks in order. A slot is block * block_size + offset. Layout of `keys` and `values`:
// [num_blocks, num_kv_heads, block_size, head_dim].
#pragma once

#include <cstdint>

#include "base/cpu_features.h"
#include "base/dtype.h"
#include "base/thread_pool.h"

namespace nibble::kernels {

struct KvCacheView {
  void* keys = nullptr;
  void* values = nullptr;
  DType dtype = DType::kBf16;  // f32, bf16 or f16
  int64_t num_blocks = 0;
  int64_t num_kv_heads = 0;
  int64_t block_size = 16;
  int64_t head_dim = 0;
};

struct KvAppendArgs {
  int64_t num_tokens = 0;
  const float* k = nullptr;  // [num_tokens, k_stride]: num_kv_heads * head_dim from column 0
  int64_t k_stride = 0;
  const float* v = nullptr;  // [num_tokens, v_stride]
  int64_t v_stride = 0;
  const int32_t* slot_mapping =
      nullptr;  // [num_tokens], distinct slots in [0, num_blocks * block_size)
};

// Writes k and v (rounded to nearest even) to their slots. All variants are bit-equal.
void KvAppend(const KvCacheView& cache, const KvAppendArgs& args, Isa isa, ThreadPool* pool);

}  // namespace nibble::kernels
