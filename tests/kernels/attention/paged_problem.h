// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Sequences with random keys and values in a paged cache whose unused slots are NaN, and their
// attention.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/attention/paged_attention.h"
#include "kernels/kv/kv_cache.h"
#include "tests/testing/random.h"

namespace nibble::testing {

struct AttentionShape {
  int64_t num_heads = 4;
  int64_t num_kv_heads = 2;
  int64_t head_dim = 64;
  int64_t block_size = 16;
  int64_t sliding_window = 0;
  DType dtype = DType::kBf16;
};

// One sequence's rows, from position 0.
struct SequenceData {
  int64_t length = 0;
  std::vector<float> q;  // [length, num_heads * head_dim]
  std::vector<float> k;  // [length, num_kv_heads * head_dim]
  std::vector<float> v;
};

inline SequenceData MakeSequence(const AttentionShape& shape, int64_t length, uint32_t seed) {
  Random random(seed);
  SequenceData data{.length = length};
  data.q = random.Normals(length * shape.num_heads * shape.head_dim);
  data.k = random.Normals(length * shape.num_kv_heads * shape.head_dim);
  data.v = random.Normals(length * shape.num_kv_heads * shape.head_dim);
  return data;
}

// What one call computes of a sequence: the queries at positions [begin, end).
struct Chunk {
  const SequenceData* sequence = nullptr;
  int64_t begin = 0;
  int64_t end = 0;
};

// Outputs of each chunk: [end - begin, num_heads * head_dim], computed by attend(cache, args).
// `seed` scatters the blocks.
template <typename AttendFunction>
std::vector<std::vector<float>> AttendWith(const AttentionShape& shape,
                                           const std::vector<Chunk>& chunks, ThreadPool* pool,
                                           uint32_t seed, const AttendFunction& attend) {
  int64_t max_blocks = 1;
  int64_t num_blocks = 1;
  for (const Chunk& chunk : chunks) {
    const int64_t blocks = (chunk.end + shape.block_size - 1) / shape.block_size;
    max_blocks = std::max(max_blocks, blocks);
    num_blocks += blocks;
  }
  const int64_t element = static_cast<int64_t>(SizeOf(shape.dtype));
  const int64_t cache_bytes =
      num_blocks * shape.num_kv_heads * shape.block_size * shape.head_dim * element;
  // All bits set is a NaN in each of the float types, and so are the scales of int8.
  std::vector<char> keys(static_cast<size_t>(cache_bytes), '\xff');
  std::vector<char> values(static_cast<size_t>(cache_bytes), '\xff');
  const bool scaled = shape.dtype == DType::kI8;
  std::vector<float> key_scales(
      static_cast<size_t>(num_blocks * shape.num_kv_heads * shape.block_size),
      std::numeric_limits<float>::quiet_NaN());
  std::vector<float> value_scales = key_scales;
  const kernels::KvCacheView cache{.keys = keys.data(),
                                   .values = values.data(),
                                   .key_scales = scaled ? key_scales.data() : nullptr,
                                   .value_scales = scaled ? value_scales.data() : nullptr,
                                   .dtype = shape.dtype,
                                   .num_blocks = num_blocks,
                                   .num_kv_heads = shape.num_kv_heads,
                                   .block_size = shape.block_size,
                                   .head_dim = shape.head_dim};
  std::vector<int32_t> free_blocks(static_cast<size_t>(num_blocks));
  std::iota(free_blocks.begin(), free_blocks.end(), 0);
  Random random(seed);
  for (size_t i = free_blocks.size(); i > 1; --i) {
    std::swap(free_blocks[i - 1],
              free_blocks[static_cast<size_t>(random.Int(0, static_cast<int64_t>(i) - 1))]);
  }

  const int64_t q_columns = shape.num_heads * shape.head_dim;
  const int64_t kv_columns = shape.num_kv_heads * shape.head_dim;
  const int64_t stride = q_columns + 3;  // NaN between rows of q, canaries between rows of out
  std::vector<int32_t> query_start = {0};
  std::vector<int32_t> context_lens;
  std::vector<int32_t> block_tables(chunks.size() * static_cast<size_t>(max_blocks), 0);
  std::vector<float> q;
  for (size_t s = 0; s < chunks.size(); ++s) {
    const Chunk& chunk = chunks[s];
    int32_t* table = block_tables.data() + s * static_cast<size_t>(max_blocks);
    std::vector<int32_t> slots;
    for (int64_t position = 0; position < chunk.end; ++position) {
      const int64_t block = position / shape.block_size;
      if (position % shape.block_size == 0) {
        table[block] = free_blocks.back();
        free_blocks.pop_back();
      }
      slots.push_back(
          static_cast<int32_t>(table[block] * shape.block_size + position % shape.block_size));
    }
    kernels::KvAppend(cache,
                      {.num_tokens = chunk.end,
                       .k = chunk.sequence->k.data(),
                       .k_stride = kv_columns,
                       .v = chunk.sequence->v.data(),
                       .v_stride = kv_columns,
                       .slot_mapping = slots.data()},
                      Isa::kRef, pool);
    for (int64_t position = chunk.begin; position < chunk.end; ++position) {
      const float* row = chunk.sequence->q.data() + position * q_columns;
      q.insert(q.end(), row, row + q_columns);
      q.insert(q.end(), static_cast<size_t>(stride - q_columns),
               std::numeric_limits<float>::quiet_NaN());
    }
    query_start.push_back(query_start.back() + static_cast<int32_t>(chunk.end - chunk.begin));
    context_lens.push_back(static_cast<int32_t>(chunk.end));
  }

  constexpr float kCanary = 1234.5F;
  std::vector<float> out(q.size(), kCanary);
  attend(cache,
         kernels::PagedAttentionArgs{.num_seqs = static_cast<int64_t>(chunks.size()),
                                     .num_heads = shape.num_heads,
                                     .q = q.data(),
                                     .q_stride = stride,
                                     .query_start = query_start.data(),
                                     .context_lens = context_lens.data(),
                                     .block_tables = block_tables.data(),
                                     .max_blocks_per_seq = max_blocks,
                                     .scale = 1.0F / std::sqrt(static_cast<float>(shape.head_dim)),
                                     .sliding_window = shape.sliding_window,
                                     .out = out.data(),
                                     .out_stride = stride});

  std::vector<std::vector<float>> results;
  for (size_t s = 0; s < chunks.size(); ++s) {
    std::vector<float>& result = results.emplace_back();
    for (int32_t token = query_start[s]; token < query_start[s + 1]; ++token) {
      const float* row = out.data() + token * stride;
      result.insert(result.end(), row, row + q_columns);
      for (int64_t i = q_columns; i < stride; ++i) {
        // A damaged canary becomes a NaN in the result, which every comparison notices.
        if (row[i] != kCanary) result.back() = std::numeric_limits<float>::quiet_NaN();
      }
    }
  }
  return results;
}

inline std::vector<std::vector<float>> Attend(const AttentionShape& shape,
                                              const std::vector<Chunk>& chunks, Isa isa,
                                              ThreadPool* pool, uint32_t seed = 1) {
  return AttendWith(
      shape, chunks, pool, seed,
      [&](const kernels::KvCacheView& cache, const kernels::PagedAttentionArgs& args) {
        kernels::PagedAttention(cache, args, isa, pool);
      });
}

// Bit for bit, NaN unequal to everything.
inline bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  const auto is_nan = [](float x) { return std::isnan(x); };
  return a.size() == b.size() && std::none_of(a.begin(), a.end(), is_nan) &&
         std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace nibble::testing
