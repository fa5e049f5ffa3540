// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/kv/kv_cache.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/kv/kv_convert.h"

namespace nibble::kernels {
namespace {

// Elements a thread takes at a time: a few microseconds of work.
constexpr int64_t kPieceElements = 16384;

// Null for float caches. Sets above AVX2 use its variant.
KvConvertFunction ChooseConvert(DType dtype, Isa isa) {
  const bool vectors = isa >= Isa::kAvx2;
  if (dtype == DType::kF32) return nullptr;
  if (dtype == DType::kBf16) return vectors ? avx2::ConvertToBf16 : ref::ConvertToBf16;
  return vectors ? avx2::ConvertToF16 : ref::ConvertToF16;
}

// One token's heads to their rows of the cache. `convert` is null for float caches.
void AppendRow(const KvCacheView& cache, const float* in, int64_t slot, void* out,
               KvConvertFunction convert) {
  const int64_t block = slot / cache.block_size;
  const int64_t offset = slot % cache.block_size;
  for (int64_t head = 0; head < cache.num_kv_heads; ++head) {
    const int64_t row = (block * cache.num_kv_heads + head) * cache.block_size + offset;
    const float* from = in + head * cache.head_dim;
    if (convert == nullptr) {
      std::memcpy(static_cast<float*>(out) + row * cache.head_dim, from,
                  static_cast<size_t>(cache.head_dim) * sizeof(float));
    } else {
      convert(from, static_cast<uint16_t*>(out) + row * cache.head_dim, cache.head_dim);
    }
  }
}

}  // namespace

void KvAppend(const KvCacheView& cache, const KvAppendArgs& args, Isa isa, ThreadPool* pool) {
  NIBBLE_CHECK(cache.dtype == DType::kF32 || cache.dtype == DType::kBf16 ||
               cache.dtype == DType::kF16);
  const KvConvertFunction convert = ChooseConvert(cache.dtype, isa);
  const int64_t row_elements = std::max<int64_t>(1, cache.num_kv_heads * cache.head_dim);
  const int64_t grain = std::max<int64_t>(1, kPieceElements / row_elements);
  pool->ParallelFor(args.num_tokens, grain, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const int64_t slot = args.slot_mapping[token];
      NIBBLE_CHECK(slot >= 0 && slot < cache.num_blocks * cache.block_size);
      AppendRow(cache, args.k + token * args.k_stride, slot, cache.keys, convert);
      AppendRow(cache, args.v + token * args.v_stride, slot, cache.values, convert);
    }
  });
}

}  // namespace nibble::kernels
