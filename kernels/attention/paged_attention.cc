// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/attention/paged_attention.h"

#include "base/check.h"
#include "kernels/attention/paged_attention_ref.h"
#include "kernels/attention/paged_attention_tiles.h"

namespace nibble::kernels {

void PagedAttention(const KvCacheView& cache, const PagedAttentionArgs& args, Isa isa,
                    ThreadPool* pool) {
  NIBBLE_CHECK_GT(cache.num_kv_heads, 0);
  NIBBLE_CHECK_GT(cache.block_size, 0);
  NIBBLE_CHECK_EQ(args.num_heads % cache.num_kv_heads, 0);
  NIBBLE_CHECK(cache.dtype == DType::kF32 || cache.dtype == DType::kBf16 ||
               cache.dtype == DType::kF16 || cache.dtype == DType::kI8);
  NIBBLE_CHECK((cache.dtype == DType::kI8) == (cache.key_scales != nullptr));
  NIBBLE_CHECK((cache.dtype == DType::kI8) == (cache.value_scales != nullptr));
  switch (isa) {
    case Isa::kRef:
      ref::PagedAttention(cache, args, pool);
      return;
    case Isa::kAvx2:
      PagedAttentionTiles(cache, args, {.pack = avx2::PackTile, .attend = avx2::AttendTile}, pool);
      return;
    case Isa::kAvx512Vnni:
    case Isa::kAmx:  // scores and weights stay float: no tile form of their own
      PagedAttentionTiles(cache, args,
                          {.pack = avx512vnni::PackTile, .attend = avx512vnni::AttendTile}, pool);
      return;
  }
}

}  // namespace nibble::kernels
