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

double Load(DType dtype, const void* data, int64_t index) {
  if (dtype == DType::kF32) return static_cast<double>(static_cast<const float*>(data)[index]);
  if (dtype == DType::kI8) return static_cast<double>(static_cast<const int8_t*>(data)[index]);
  const uint16_t bits = static_cast<const uint16_t*>(data)[index];
  return static_cast<double>(dtype == DType::kBf16 ? ToFloat(BFloat16{bits})
                                                   : ToFloat(Float16{bits}));
}

// Where one head's position lies in a cache (kernels/kv/kv_cache.h).
struct Place {
  int64_t block;  // of all blocks of all heads
  int64_t offset;
};

Place PlaceOf(const KvCacheView& cache, const int32_t* block_table, int64_t kv_head,
              int64_t position) {
  const int64_t block = block_table[position / cache.block_size];
  return {block * cache.num_kv_heads + kv_head, position % cache.block_size};
}

double Key(const KvCacheView& cache, Place place, int64_t d) {
  const double scale =
      cache.key_scales != nullptr
          ? static_cast<double>(cache.key_scales[place.block * cache.block_size + place.offset])
          : 1.0;
  const int64_t at = (place.block * cache.head_dim + d) * cache.block_size + place.offset;
  return Load(cache.dtype, cache.keys, at) * scale;
}

double Value(const KvCacheView& cache, Place place, int64_t d) {
  const int64_t row = place.block * cache.block_size + place.offset;
  const double scale =
      cache.value_scales != nullptr ? static_cast<double>(cache.value_scales[row]) : 1.0;
  return Load(cache.dtype, cache.values, row * cache.head_dim + d) * scale;
}

void AttendOne(const KvCacheView& cache, const PagedAttentionArgs& args, const int32_t* block_table,
               int64_t position, int64_t head, const float* q, float* out) {
  const int64_t kv_head = head / (args.num_heads / cache.num_kv_heads);
  const int64_t begin =
      args.sliding_window > 0 ? std::max<int64_t>(0, position - args.sliding_window + 1) : 0;
  std::vector<double> weights;
  double max_score = -std::numeric_limits<double>::infinity();
  for (int64_t j = begin; j <= position; ++j) {
    const Place place = PlaceOf(cache, block_table, kv_head, j);
    double dot = 0.0;
    for (int64_t d = 0; d < cache.head_dim; ++d) {
      dot += static_cast<double>(q[d]) * Key(cache, place, d);
    }
    weights.push_back(dot * static_cast<double>(args.scale));
    max_score = std::max(max_score, weights.back());
  }
  double sum = 0.0;
  for (double& weight : weights) sum += weight = std::exp(weight - max_score);
  std::vector<double> result(static_cast<size_t>(cache.head_dim), 0.0);
  for (int64_t j = begin; j <= position; ++j) {
    const Place place = PlaceOf(cache, block_table, kv_head, j);
    const double weight = weights[static_cast<size_t>(j - begin)] / sum;
    for (size_t d = 0; d < result.size(); ++d) {
      result[d] += weight * Value(cache, place, static_cast<int64_t>(d));
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
