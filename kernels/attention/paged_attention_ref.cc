// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/attention/paged_attention_ref.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/float16.h"

namespace nibble::kernels::ref {
namespace {

double Load(const KvCacheView& cache, const void* data, int64_t index) {
  if (cache.dtype == DType::kF32)
    return static_cast<double>(static_cast<const float*>(data)[index]);
  const uint16_t bits = static_cast<const uint16_t*>(data)[index];
  return static_cast<double>(cache.dtype == DType::kBf16 ? ToFloat(BFloat16{bits})
                                                         : ToFloat(Float16{bits}));
}

// Index of component 0 of position `position` in `keys` and `values`.
int64_t RowIndex(const KvCacheView& cache, const int32_t* block_table, int64_t kv_head,
                 int64_t position) {
  const int64_t block = block_table[position / cache.block_size];
  const int64_t offset = position % cache.block_size;
  return ((block * cache.num_kv_heads + kv_head) * cache.block_size + offset) * cache.head_dim;
}

void AttendOne(const KvCacheView& cache, const PagedAttentionArgs& args, const int32_t* block_table,
               int64_t position, int64_t head, const float* q, float* out) {
  const int64_t kv_head = head / (args.num_heads / cache.num_kv_heads);
  const int64_t begin =
      args.sliding_window > 0 ? std::max<int64_t>(0, position - args.sliding_window + 1) : 0;
  std::vector<double> weights;
  double max_score = -std::numeric_limits<double>::infinity();
  for (int64_t j = begin; j <= position; ++j) {
    const int64_t row = RowIndex(cache, block_table, kv_head, j);
    double dot = 0.0;
    for (int64_t d = 0; d < cache.head_dim; ++d) {
      dot += static_cast<double>(q[d]) * Load(cache, cache.keys, row + d);
    }
    weights.push_back(dot * static_cast<double>(args.scale));
    max_score = std::max(max_score, weights.back());
  }
  double sum = 0.0;
  for (double& weight : weights) sum += weight = std::exp(weight - max_score);
  std::vector<double> result(static_cast<size_t>(cache.head_dim), 0.0);
  for (int64_t j = begin; j <= position; ++j) {
    const int64_t row = RowIndex(cache, block_table, kv_head, j);
    const double weight = weights[static_cast<size_t>(j - begin)] / sum;
    for (size_t d = 0; d < result.size(); ++d) {
      result[d] += weight * Load(cache, cache.values, row + static_cast<int64_t>(d));
    }
  }
  for (size_t d = 0; d < result.size(); ++d) out[d] = static_cast<float>(result[d]);
}

}  // namespace

void PagedAttention(const KvCacheView& cache, const PagedAttentionArgs& args, ThreadPool* pool) {
  for (int64_t seq = 0; seq < args.num_seqs; ++seq) {
    const int64_t first = args.query_start[seq];
    const int64_t num_new = args.query_start[seq + 1] - first;
    const int32_t* block_table = args.block_tables + seq * args.max_blocks_per_seq;
    pool->ParallelFor(num_new * args.num_heads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t token = i / args.num_heads;
        const int64_t head = i % args.num_heads;
        const int64_t column = head * cache.head_dim;
        AttendOne(cache, args, block_table, args.context_lens[seq] - num_new + token, head,
                  args.q + (first + token) * args.q_stride + column,
                  args.out + (first + token) * args.out_stride + column);
      }
    });
  }
}

}  // namespace nibble::kernels::ref
