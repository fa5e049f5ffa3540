// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/norm/rms_norm.h"

#include <algorithm>

#include "base/aligned_buffer.h"
#include "base/check.h"
#include "kernels/norm/rms_norm_row.h"

namespace nibble::kernels {
namespace {

// Elements a thread takes at a time: 64 KB of floats, some microseconds of work, and the scratch
// rows still lie in the L2 cache when they are quantized.
constexpr int64_t kPieceElements = 16384;

using RowFunction = void (*)(const RmsNormRow&);

RowFunction ChooseRowFunction(Isa isa) {
  switch (isa) {
    case Isa::kRef:
      break;
    case Isa::kAvx2:
      return avx2::NormalizeRow;
    case Isa::kAvx512Vnni:
    case Isa::kAmx:  // nothing here is a matrix product
      return avx512vnni::NormalizeRow;
  }
  return ref::NormalizeRow;
}

void NormalizeRows(const RmsNormArgs& args, int64_t begin, int64_t end, Isa isa,
                   RowFunction normalize) {
  const bool scratch_output = args.y == nullptr;
  AlignedBuffer<float> scratch(scratch_output ? static_cast<size_t>((end - begin) * args.hidden)
                                              : 0);
  float* const y = scratch_output ? scratch.data() : args.y + begin * args.y_stride;
  const int64_t y_stride = scratch_output ? args.hidden : args.y_stride;
  for (int64_t row = begin; row < end; ++row) {
    normalize({.hidden = args.hidden,
               .x = args.x + row * args.x_stride,
               .delta = args.delta != nullptr ? args.delta + row * args.delta_stride : nullptr,
               .weight = args.weight,
               .epsilon = args.epsilon,
               .y = y + (row - begin) * y_stride});
  }
  if (args.y8.values == nullptr) return;
  ThreadPool caller_only(1);  // loops do not nest: these rows stay on this thread
  QuantizeRows(y, y_stride, end - begin, args.hidden,
               {.values = args.y8.values + begin * args.y8.stride,
                .scales = args.y8.scales + begin,
                .sums = args.y8.sums + begin,
                .stride = args.y8.stride},
               isa, &caller_only);
}

}  // namespace

void RmsNorm(const RmsNormArgs& args, Isa isa, ThreadPool* pool) {
  NIBBLE_CHECK(args.y != nullptr || args.y8.values != nullptr);
  NIBBLE_CHECK(args.delta == nullptr || args.y != args.x);
  if (args.hidden == 0) return;
  const RowFunction normalize = ChooseRowFunction(isa);
  const int64_t grain = std::max<int64_t>(1, kPieceElements / args.hidden);
  pool->ParallelFor(args.num_rows, grain, [&](int64_t begin, int64_t end) {
    NormalizeRows(args, begin, end, isa, normalize);
  });
}

}  // namespace nibble::kernels
