// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The paged KV cache of one layer, and appending to it.
//
// Keys and values live in blocks of `block_size` token positions; a sequence's block table lists
// its blocks in order. A slot is block * block_size + offset. Inside a block keys lie component by
// component and values position by position: what attention reads as vectors is then contiguous for
// both (README.md).
#pragma once

#include <cstdint>

#include "base/cpu_features.h"
#include "base/dtype.h"
#include "base/thread_pool.h"
#include "kernels/rope/rope.h"

namespace nibble::kernels {

struct KvCacheView {
  void* keys = nullptr;    // [num_blocks, num_kv_heads, head_dim, block_size]
  void* values = nullptr;  // [num_blocks, num_kv_heads, block_size, head_dim]
  // [num_blocks, num_kv_heads, block_size]; int8 only, else null. Element = int8 * scale.
  float* key_scales = nullptr;
  float* value_scales = nullptr;
  DType dtype = DType::kBf16;  // f32, bf16, f16 or i8
  int64_t num_blocks = 0;
  int64_t num_kv_heads = 0;
  int64_t block_size = 16;
  int64_t head_dim = 0;

  // Positions of heads: each has a key and a value of head_dim elements, and two scales.
  int64_t num_rows() const { return num_blocks * num_kv_heads * block_size; }
  // Of `keys`, and of `values`.
  int64_t num_bytes() const { return num_rows() * head_dim * static_cast<int64_t>(SizeOf(dtype)); }
};

struct KvAppendArgs {
  int64_t num_tokens = 0;
  const float* k = nullptr;  // [num_tokens, k_stride]: num_kv_heads * head_dim from column 0
  int64_t k_stride = 0;
  const float* v = nullptr;  // [num_tokens, v_stride]
  int64_t v_stride = 0;
  // [num_tokens], distinct slots in [0, num_blocks * block_size)
  const int32_t* slot_mapping = nullptr;
};

// Writes k and v to their slots: floats rounded to nearest even, int8 as
// kernels/quant/quantize_rows.h has it, with a scale for each head and token (a head with a NaN or
// an infinity gets a NaN scale: what attends to it is NaN). All variants are bit-equal. Threads
// keep scratch memory of one head for their next call; std::bad_alloc when there is none.
void KvAppend(const KvCacheView& cache, const KvAppendArgs& args, Isa isa, ThreadPool* pool);

struct RopeKvAppendArgs {
  int64_t num_tokens = 0;
  // [num_tokens, stride] each: heads of cache.head_dim from column 0. Queries and keys are rotated
  // in place.
  float* q = nullptr;
  float* k = nullptr;
  const float* v = nullptr;
  int64_t stride = 0;
  int64_t num_heads = 0;               // of q
  const int32_t* positions = nullptr;  // [num_tokens], each in [0, table.max_positions)
  // [num_tokens], distinct slots in [0, num_blocks * block_size)
  const int32_t* slot_mapping = nullptr;
};

// ApplyRope to q and k, and KvAppend, to the bit, in one pass over the tokens; scratch memory as
// there.
void RopeKvAppend(const RopeTable& table, const KvCacheView& cache, const RopeKvAppendArgs& args,
                  Isa isa, ThreadPool* pool);

}  // namespace nibble::kernels
