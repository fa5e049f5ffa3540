// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <algorithm>

#include "base/cuda/launch.h"
#include "base/cuda/memory.cuh"
#include "base/cuda/reduce.cuh"
#include "base/cuda/shared_memory.cuh"
#include "kernels/activation/cuda/silu_mul.h"
#include "kernels/device/exp.cuh"
#include "kernels/quant/cuda/row_plan.h"
#include "kernels/quant/cuda/write_row.cuh"

namespace nibble::kernels::cuda {
namespace {

constexpr int kBlocksPerSm = 2;
constexpr int64_t kMaxSplitRows = 256;
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

// What the blocks of a row tell each other; all zero between calls.
struct SplitRow {
  int max_bits;
  uint32_t arrived;
  int sum;
  uint32_t left;
};

struct SplitShared {
  int max[kPieceThreads / 32];
  int sums[kPieceThreads / 32];
  int max_bits;
};

// int8 of few rows: a block has a piece, and all blocks of a row are there at the same time.
template <typename T>
__global__ __launch_bounds__(kPieceThreads,
                             kBlocksPerSm) void SiluMulSplitKernel(SiluMulArgs args,
                                                                   int pieces_per_row) {
  auto* const shared = gpu::SharedAs<SplitShared>();
  const int64_t row = blockIdx.x / pieces_per_row;
  if (args.valid_rows != nullptr && row >= *args.valid_rows) return;
  SplitRow* const split = static_cast<SplitRow*>(args.workspace) + row;
  const int piece = static_cast<int>(blockIdx.x % pieces_per_row);
  const int64_t column = int64_t{piece * kPieceThreads + static_cast<int>(threadIdx.x)} * kElements;
  const bool inside = column < args.intermediate;
  Float8 y = {};
  if (inside) {
    const T* const gate =
        static_cast<const T*>(args.gate_up.data) + row * args.gate_up.stride + column;
    y = SiluMul8(gate, gate + args.intermediate);
    if (args.out.values.data != nullptr) {
      Store8(args.out.values, row * args.out.values.stride + column, y);
    }
  }

  int max_bits = __reduce_max_sync(gpu::kFullMask, MagnitudeBits(y));
  if (gpu::LaneId() == 0) shared->max[gpu::WarpId()] = max_bits;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (const int bits : shared->max) max_bits = max(max_bits, bits);
    atomicMax(&split->max_bits, max_bits);
    __threadfence();
    atomicAdd(&split->arrived, 1U);
    while (gpu::LoadAcquireDevice(&split->arrived) < static_cast<uint32_t>(pieces_per_row)) {
    }
    shared->max_bits = atomicMax(&split->max_bits, 0);
  }
  __syncthreads();

  const RowScale scale = MakeRowScale(shared->max_bits);
  int sum = 0;
  if (inside) {
    sum =
        QuantizeTo(args.out.quantized.values + row * args.out.quantized.stride + column, y, scale);
  }
  sum = __reduce_add_sync(gpu::kFullMask, sum);
  if (gpu::LaneId() == 0) shared->sums[gpu::WarpId()] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  sum = 0;
  for (const int part : shared->sums) sum += part;
  atomicAdd(&split->sum, sum);
  __threadfence();
  if (atomicAdd(&split->left, 1U) + 1 < static_cast<uint32_t>(pieces_per_row)) return;
  // The last one: nobody looks at these any more.
  __threadfence();
  args.out.quantized.scales[row] = scale.scale;
  args.out.quantized.sums[row] = atomicAdd(&split->sum, 0);
  *split = {};
}

// Whether a launch of `pieces` a row is better than one block a row, and all of it fits the device.
template <typename T>
absl::StatusOr<bool> Splits(const SiluMulArgs& args, int64_t pieces) {
  if (args.workspace == nullptr || pieces == 1 || args.num_rows > kMaxSplitRows) return false;
  NIBBLE_ASSIGN_OR_RETURN(
      const int64_t max_blocks,
      gpu::ResidentBlocks(SiluMulSplitKernel<T>, kPieceThreads, sizeof(SplitShared)));
  return args.num_rows * pieces <= max_blocks;
}

template <typename T>
absl::Status LaunchFor(const SiluMulArgs& args, cudaStream_t stream) {
  const int64_t chunks = args.intermediate / kElements;
  const int64_t pieces = (chunks + kPieceThreads - 1) / kPieceThreads;
  if (args.out.quantized.values == nullptr) {
    NIBBLE_RETURN_IF_ERROR(CheckGrid(args.num_rows, pieces));
    return gpu::Launch(SiluMulPieceKernel<T>,
                       {.grid = {static_cast<unsigned>(args.num_rows * pieces)},
                        .block = {kPieceThreads},
                        .stream = stream},
                       args, pieces);
  }
  NIBBLE_ASSIGN_OR_RETURN(const bool splits, Splits<T>(args, pieces));
  if (splits) {
    return gpu::Launch(SiluMulSplitKernel<T>,
                       {.grid = {static_cast<unsigned>(args.num_rows * pieces)},
                        .block = {kPieceThreads},
                        .shared_bytes = sizeof(SplitShared),
                        .stream = stream,
                        .cooperative = true},
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

int64_t SiluMulWorkspaceBytes(int64_t max_rows) {
  return std::min(max_rows, kMaxSplitRows) * static_cast<int64_t>(sizeof(SplitRow));
}

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
