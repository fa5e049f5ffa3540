// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/moe/combine.h"

#include <algorithm>
#include <cmath>

namespace nibble::kernels {

void Combine(const CombineArgs& args, Isa /*isa*/, ThreadPool* pool) {
  pool->ParallelFor(args.num_tokens, 4, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* const out = args.out + t * args.out_stride;
      bool first = !args.accumulate;
      for (int64_t j = 0; j < args.num_experts_per_tok; ++j) {
        const int64_t at = t * args.num_experts_per_tok + j;
        if (args.row_of[at] < 0) continue;
        const float* const y = args.y + args.row_of[at] * args.y_stride;
        const float weight = args.weights[at];
        for (int64_t c = 0; c < args.hidden; ++c) {
          out[c] = first ? weight * y[c] : std::fma(weight, y[c], out[c]);
        }
        first = false;
      }
      if (first) std::fill_n(out, args.hidden, 0.0F);
    }
  });
}

}  // namespace nibble::kernels
