// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/cuda/launch.h"
#include "base/cuda/shared_memory.cuh"
#include "kernels/activation/cuda/silu_mul.h"
#include "kernels/device/exp.cuh"
#include "kernels/quant/cuda/row_plan.h"
#include "kernels/quant/cuda/write_row.cuh"

namespace nibble::kernels::cuda {
namespace {

constexpr int64_t kMaxIntermediate = int64_t{1} << 23;
// Of blocks that have a piece of a row: 2048 elements.
constexpr int kPieceThreads = 256;

// The operations, and so the bits, of the CPU variants.
template <typename T>
__device__ __forceinline__ Float8 SiluMul8(const T* gate, const T* up) {
  const Float8 g = Load8(gate);
  const Float8 u = Load8(up);
  Float8 y;
#pragma unroll
  for (int e = 0; e < kElements; ++e) y.v[e] = g.v[e] / (1.0F + Exp(-g.v[e])) * u.v[e];
  return y;
}

// int8: a block has a row, whose scale it has to find.
template <int kHeld, typename T>
__global__ __launch_bounds__(kMaxRowThreads) void SiluMulRowKernel(SiluMulArgs args) {
  const int64_t row = blockIdx.x;
  if (args.valid_rows != nullptr && row >= *args.valid_rows) return;
  const T* const gate = static_cast<const T*>(args.gate_up.data) + row * args.gate_up.stride;
  const T* const up = gate + args.intermediate;
  WriteRow<kHeld>(args.out, row, static_cast<int>(args.intermediate / kElements),
                  gpu::SharedAs<RowScratch>(), [gate, up](int, int chunk) {
                    return SiluMul8(gate + chunk * kElements, up + chunk * kElements);
                  });
}

// Floats alone: rows are cut, so that few of them fill the device, too.
template <typename T>
__global__ __launch_bounds__(kPieceThreads) void SiluMulPieceKernel(SiluMulArgs args,
                                                                    int pieces_per_row) {
  const int64_t row = blockIdx.x / pieces_per_row;
  if (args.valid_rows != nullptr && row >= *args.valid_rows) return;
  const int piece = static_cast<int>(blockIdx.x % pieces_per_row);
  const int64_t column = int64_t{piece * kPieceThreads + static_cast<int>(threadIdx.x)} * kElements;
  if (column >= args.intermediate) return;
  const T* const gate =
      static_cast<const T*>(args.gate_up.data) + row * args.gate_up.stride + column;
  Store8(args.out.values, row * args.out.values.stride + column,
         SiluMul8(gate, gate + args.intermediate));
}

template <typename T>
absl::Status LaunchFor(const SiluMulArgs& args, cudaStream_t stream) {
  if (args.out.quantized.values == nullptr) {
    const int64_t chunks = args.intermediate / kElements;
    const int64_t pieces = (chunks + kPieceThreads - 1) / kPieceThreads;
    NIBBLE_RETURN_IF_ERROR(CheckGrid(args.num_rows, pieces));
    return gpu::Launch(SiluMulPieceKernel<T>,
                       {.grid = {static_cast<unsigned>(args.num_rows * pieces)},
                        .block = {kPieceThreads},
                        .stream = stream},
                       args, pieces);
  }
  const RowPlan plan = PlanRow(args.intermediate);
  return WithHeld(plan.held, [&](auto held) {
    return gpu::Launch(SiluMulRowKernel<decltype(held)::value, T>,
                       {.grid = {static_cast<unsigned>(args.num_rows)},
                        .block = {plan.threads},
                        .shared_bytes = sizeof(RowScratch),
                        .stream = stream},
                       args);
  });
}

}  // namespace

absl::Status SiluMul(const SiluMulArgs& args, cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(CheckColumns("intermediate", args.intermediate, kMaxIntermediate));
  NIBBLE_RETURN_IF_ERROR(
      CheckMatrix("gate_up", args.gate_up, args.num_rows, 2 * args.intermediate));
  NIBBLE_RETURN_IF_ERROR(CheckOutput(args.out, args.num_rows, args.intermediate));
  switch (args.gate_up.dtype) {
    case DType::kBf16:
      return LaunchFor<gpu::Bf16>(args, stream);
    case DType::kF16:
      return LaunchFor<gpu::Half>(args, stream);
    default:
      return LaunchFor<float>(args, stream);
  }
}

}  // namespace nibble::kernels::cuda
