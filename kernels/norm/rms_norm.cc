// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/norm/rms_norm.h"

#include "base/check.h"
#include "kernels/device/pick_by_isa.h"
#include "kernels/device/row_loop.h"
#include "kernels/device/thread_scratch.h"
#include "kernels/norm/rms_norm_row.h"

namespace nibble::kernels {
namespace {

using RowFunction = void (*)(const RmsNormRow&);

void NormalizeRows(const RmsNormArgs& args, int64_t begin, int64_t end, Isa isa,
                   RowFunction normalize) {
  // Where int8 alone is asked for, a row of floats is quantized while it lies in the L1 cache.
  struct Purpose;
  float* const scratch =
      args.y == nullptr ? ThreadScratch<Purpose, float>(static_cast<size_t>(args.hidden)) : nullptr;
  for (int64_t row = begin; row < end; ++row) {
    float* const y = args.y == nullptr ? scratch : args.y + row * args.y_stride;
    normalize({.hidden = args.hidden,
               .x = args.x + row * args.x_stride,
               .delta = args.delta != nullptr ? args.delta + row * args.delta_stride : nullptr,
               .weight = args.weight,
               .epsilon = args.epsilon,
               .y = y});
    if (args.y8.values == nullptr) continue;
    QuantizeRowRange(y, args.hidden, 1, args.hidden,
                     {.values = args.y8.values + row * args.y8.stride,
                      .scales = args.y8.scales + row,
                      .sums = args.y8.sums + row,
                      .stride = args.y8.stride},
                     isa);
  }
}

}  // namespace

void RmsNorm(const RmsNormArgs& args, Isa isa, ThreadPool* pool) {
  NIBBLE_CHECK(args.y != nullptr || args.y8.values != nullptr);
  NIBBLE_CHECK(args.delta == nullptr || args.y != args.x);
  if (args.hidden == 0) return;
  const RowFunction normalize =
      PickByIsa(isa, ref::NormalizeRow, avx2::NormalizeRow, avx512vnni::NormalizeRow);
  ForRows(pool, args.num_rows, args.hidden,
          [&](int64_t begin, int64_t end) { NormalizeRows(args, begin, end, isa, normalize); });
}

}  // namespace nibble::kernels
