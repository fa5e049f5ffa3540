// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/activation/silu_mul.h"

#include <algorithm>

#include "base/aligned_buffer.h"
#include "base/check.h"
#include "kernels/activation/silu_mul_row.h"

namespace nibble::kernels {
namespace {

// Elements a thread takes at a time: some microseconds of work, and the scratch rows still lie in
// the L2 cache when they are quantized.
constexpr int64_t kPieceElements = 16384;

SiluMulRowFunction ChooseRowFunction(Isa isa) {
  switch (isa) {
    case Isa::kRef:
      break;
    case Isa::kAvx2:
      return avx2::SiluMulRow;
    case Isa::kAvx512Vnni:
    case Isa::kAmx:  // nothing here is a matrix product
      return avx512vnni::SiluMulRow;
  }
  return ref::SiluMulRow;
}

void SiluMulRows(const SiluMulArgs& args, int64_t begin, int64_t end, Isa isa,
                 SiluMulRowFunction silu_mul) {
  const bool scratch_output = args.y == nullptr;
  AlignedBuffer<float> scratch(
      scratch_output ? static_cast<size_t>((end - begin) * args.intermediate) : 0);
  float* const y = scratch_output ? scratch.data() : args.y + begin * args.y_stride;
  const int64_t y_stride = scratch_output ? args.intermediate : args.y_stride;
  for (int64_t row = begin; row < end; ++row) {
    const float* gate = args.gate_up + row * args.gate_up_stride;
    silu_mul(gate, gate + args.intermediate, y + (row - begin) * y_stride, args.intermediate);
  }
  if (args.y8.values == nullptr) return;
  ThreadPool caller_only(1);  // loops do not nest: these rows stay on this thread
  QuantizeRows(y, y_stride, end - begin, args.intermediate,
               {.values = args.y8.values + begin * args.y8.stride,
                .scales = args.y8.scales + begin,
                .sums = args.y8.sums + begin,
                .stride = args.y8.stride},
               isa, &caller_only);
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
  const SiluMulRowFunction silu_mul = ChooseRowFunction(isa);
  if (args.y8.values == nullptr && args.intermediate > kPieceElements) {
    SiluMulColumns(args, silu_mul, pool);
    return;
  }
  const int64_t grain = std::max<int64_t>(1, kPieceElements / args.intermediate);
  pool->ParallelFor(args.num_rows, grain, [&](int64_t begin, int64_t end) {
    SiluMulRows(args, begin, end, isa, silu_mul);
  });
}

}  // namespace nibble::kernels
