// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The equation of paged_attention.h in plain loops and double precision.
#pragma once

#include "kernels/attention/paged_attention.h"

namespace nibble::kernels::ref {

void PagedAttention(const KvCacheView& cache, const PagedAttentionArgs& args, ThreadPool* pool);

}  // namespace nibble::kernels::ref
