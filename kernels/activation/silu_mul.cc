// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/activation/silu_mul.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/activation/silu_mul_row.h"
#include "kernels/device/pick_by_isa.h"
#include "kernels/device/row_loop.h"
#include "kernels/device/thread_scratch.h"

namespace nibble::kernels {
namespace {

void SiluMulRows(const SiluMulArgs& args, int64_t begin, int64_t end, Isa isa,
                 SiluMulRowFunction silu_mul) {
  // Where int8 alone is asked for, a row of floats is quantized while it lies in the cache.
  struct Purpose;
  float* const scratch = args.y == nullptr
                             ? ThreadScratch<Purpose, float>(static_cast<size_t>(args.intermediate))
                             : nullptr;
  for (int64_t row = begin; row < end; ++row) {
    const float* gate = args.gate_up + row * args.gate_up_stride;
    float* const y = args.y == nullptr ? scratch : args.y + row * args.y_stride;
    silu_mul(gate, gate + args.intermediate, y, args.intermediate);
    if (args.y8.values == nullptr) continue;
    QuantizeRowRange(y, args.intermediate, 1, args.intermediate,
                     {.values = args.y8.values + row * args.y8.stride,
                      .scales = args.y8.scales + row,
                      .sums = args.y8.sums + row,
                      .stride = args.y8.stride},
                     isa);
  }
}

// Few long rows (decode) are cut inside the row when only floats are asked for.
void SiluMulColumns(const SiluMulArgs& args, SiluMulRowFunction silu_mul, ThreadPool* pool) {
  const int64_t pieces_per_row = (args.intermediate + kPieceElements - 1) / kPieceElements;
  pool->ParallelFor(args.num_rows * pieces_per_row, 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t row = piece / pieces_per_row;
      const int64_t column = piece % pieces_per_row * kPieceElements;
      const float* gate = args.gate_up + row * args.gate_up_stride + column;
      silu_mul(gate, gate + args.intermediate, args.y + row * args.y_stride + column,
               std::min(kPieceElements, args.intermediate - column));
    }
  });
}

}  // namespace

void SiluMul(const SiluMulArgs& args, Isa isa, ThreadPool* pool) {
  NIBBLE_CHECK(args.y != nullptr || args.y8.values != nullptr);
  if (args.intermediate == 0) return;
  const SiluMulRowFunction silu_mul =
      PickByIsa(isa, ref::SiluMulRow, avx2::SiluMulRow, avx512vnni::SiluMulRow);
  if (args.y8.values == nullptr && args.intermediate > kPieceElements) {
    SiluMulColumns(args, silu_mul, pool);
    return;
  }
  ForRows(pool, args.num_rows, args.intermediate,
          [&](int64_t begin, int64_t end) { SiluMulRows(args, begin, end, isa, silu_mul); });
}

}  // namespace nibble::kernels
