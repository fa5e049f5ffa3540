// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/rope/rope.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/rope/rope_head.h"

namespace nibble::kernels {
namespace {

// Elements a thread takes at a time: a few microseconds of work.
constexpr int64_t kPieceElements = 16384;

RotateHeadFunction ChooseRotateHead(Isa isa) {
  switch (isa) {
    case Isa::kRef:
      break;
    case Isa::kAvx2:
      return avx2::RotateHead;
    case Isa::kAvx512Vnni:
    case Isa::kAmx:  // nothing here is a matrix product
      return avx512vnni::RotateHead;
  }
  return ref::RotateHead;
}

}  // namespace

void ApplyRope(const RopeTable& table, const RopeArgs& args, Isa isa, ThreadPool* pool) {
  NIBBLE_CHECK_LE(table.rotary_dim, args.head_dim);
  const RotateHeadFunction rotate = ChooseRotateHead(isa);
  const int64_t half = table.rotary_dim / 2;
  const int64_t row_elements = std::max<int64_t>(1, args.num_heads * args.head_dim);
  const int64_t grain = std::max<int64_t>(1, kPieceElements / row_elements);
  pool->ParallelFor(args.num_tokens, grain, [&](int64_t begin, int64_t end) {
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
