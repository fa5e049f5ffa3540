// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/rope/rope.h"

#include "base/check.h"
#include "kernels/device/pick_by_isa.h"
#include "kernels/device/row_loop.h"
#include "kernels/rope/rope_head.h"

namespace nibble::kernels {

RotateHeadFunction ChooseRotateHead(Isa isa) {
  return PickByIsa(isa, ref::RotateHead, avx2::RotateHead, avx512vnni::RotateHead);
}

void ApplyRope(const RopeTable& table, const RopeArgs& args, Isa isa, ThreadPool* pool) {
  NIBBLE_CHECK_LE(table.rotary_dim, args.head_dim);
  const RotateHeadFunction rotate = ChooseRotateHead(isa);
  const int64_t half = table.rotary_dim / 2;
  ForRows(pool, args.num_tokens, args.num_heads * args.head_dim, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const int64_t position = args.positions[token];
      NIBBLE_CHECK(position >= 0 && position < table.max_positions);
      const float* cos = table.cos.data() + position * half;
      const float* sin = table.sin.data() + position * half;
      float* x = args.x + token * args.x_stride;
      for (int64_t head = 0; head < args.num_heads; ++head) {
        rotate(x + head * args.head_dim, cos, sin, half);
      }
    }
  });
}

}  // namespace nibble::kernels
