// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Causal attention of new tokens over their sequences' paged KV cache, for prefill chunks and
// decode alike.
//
// out[t, h] = sum_j softmax_j(scale * q[t, h] . K[j, h / group]) V[j, h / group], j <= position of
// t, and j > position - sliding_window when that is set. Grouped-query: num_heads / num_kv_heads
// query heads share a KV head.
//
// Batch invariance: the softmax is merged over KV blocks cut at absolute positions that are
// multiples of a constant, in ascending order, so a token's bits depend neither on the chunk it
// came in nor on the rest of the batch.
#pragma once

#include <cstdint>

#include "base/cpu_features.h"
#include "base/thread_pool.h"
#include "kernels/kv/kv_cache.h"

namespace nibble::kernels {

struct PagedAttentionArgs {
  int64_t num_seqs = 0;
  int64_t num_heads = 0;     // a multiple of cache.num_kv_heads
  const float* q = nullptr;  // [num_tokens, q_stride]: num_heads * head_dim from column 0
  int64_t q_stride = 0;
  const int32_t* query_start =
      nullptr;  // [num_seqs + 1]: tokens of sequence s are [query_start[s], query_start[s+1])
  // [num_seqs]: KV tokens of s, the new ones included; its last new token is at position
  // context_lens[s] - 1.
  const int32_t* context_lens = nullptr;
  const int32_t* block_tables = nullptr;  // [num_seqs, max_blocks_per_seq]
  int64_t max_blocks_per_seq = 0;
  float scale = 1.0F;          // usually 1 / sqrt(head_dim)
  int64_t sliding_window = 0;  // 0: none
  // [num_tokens, out_stride]: num_heads * head_dim from column 0. Must not overlap with q: rows are
  // written while others' queries are still to be read.
  float* out = nullptr;
  int64_t out_stride = 0;
};

// REQUIRES: the new tokens' keys and values are in the cache already (kernels/kv/kv_cache.h).
// Threads keep scratch memory for their next call: each some 0.3 MiB, the calling one up to 8 MiB
// more where long contexts of few sequences are shared out; std::bad_alloc when there is none.
void PagedAttention(const KvCacheView& cache, const PagedAttentionArgs& args, Isa isa,
                    ThreadPool* pool);

}  // namespace nibble::kernels
