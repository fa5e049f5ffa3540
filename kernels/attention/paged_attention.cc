// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/attention/paged_attention.h"

#include "base/check.h"
#include "kernels/attention/paged_attention_ref.h"

namespace nibble::kernels {

void PagedAttention(const KvCacheView& cache, const PagedAttentionArgs& args, Isa isa,
                    ThreadPool* pool) {
  NIBBLE_CHECK_GT(cache.num_kv_heads, 0);
  NIBBLE_CHECK_EQ(args.num_heads % cache.num_kv_heads, 0);
  switch (isa) {
    case Isa::kRef:
    case Isa::kAvx2:
    case Isa::kAvx512Vnni:
    case Isa::kAmx:
      ref::PagedAttention(cache, args, pool);
      return;
  }
}

}  // namespace nibble::kernels
