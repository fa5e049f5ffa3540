// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/cuda/launch.h"
#include "base/cuda/reduce.cuh"
#include "base/cuda/shared_memory.cuh"
#include "kernels/moe/cuda/moe.h"
#include "kernels/quant/cuda/row_plan.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kPerThread = 4;
constexpr int kPiece = kThreads * kPerThread;

struct Shared {
  int before[kWarps];
  int own[kWarps];
  int scan[2][kWarps];  // by turns: one barrier a piece
};

// Threads before this one together, and all together.
struct Scan {
  int before;
  int total;
};
__device__ __forceinline__ Scan BlockScan(int count, int* scratch) {
  const int sum = gpu::WarpScan(count);
  if (gpu::LaneId() == gpu::kWarpSize - 1) scratch[gpu::WarpId()] = sum;
  __syncthreads();
  Scan scan{sum - count, 0};
  for (int warp = 0; warp < kWarps; ++warp) {
    if (warp < gpu::WarpId()) scan.before += scratch[warp];
    scan.total += scratch[warp];
  }
  return scan;
}

// One block for each slot: it counts the rows of the slots before its own, and then gives its rows
// out in the order of the tokens. No block waits for another; each reads all slot_ids twice, which
// come from L2 (256 KB for 8192 tokens of 8 experts).
__global__ __launch_bounds__(kThreads) void PermuteKernel(PermuteArgs args) {
  auto* const shared = gpu::SharedAs<Shared>();
  const auto slot = blockIdx.x;
  const auto num_slots = static_cast<unsigned>(args.num_slots);
  const int k = static_cast<int>(args.num_experts_per_tok);
  const int count = static_cast<int>(args.num_tokens) * k;
  // Below num_slots for this rank's alone: others' wrap around.
  const auto slot_of = [&args](int i) {
    return static_cast<unsigned>(args.slot_ids[i]) - static_cast<unsigned>(args.first_slot);
  };

  int before = 0;
  int own = 0;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    const unsigned s = slot_of(i);
    before += s < slot ? 1 : 0;
    own += s == slot && s < num_slots ? 1 : 0;
  }
  before = gpu::BlockSum(before, shared->before);
  own = gpu::BlockSum(own, shared->own);
  if (threadIdx.x == 0) {
    args.offsets[slot] = before;
    if (slot + 1 == num_slots) args.offsets[num_slots] = before + own;
  }
  // The first block also says which tokens are others'.
  if (own == 0 && slot > 0) return;

  int next = before;
  for (int begin = 0, turn = 0; begin < count; begin += kPiece, turn ^= 1) {
    const int first = begin + static_cast<int>(threadIdx.x) * kPerThread;
    bool is_own[kPerThread];
    int num_own = 0;
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      const unsigned s = first + j < count ? slot_of(first + j) : num_slots;
      is_own[j] = s == slot && s < num_slots;
      num_own += is_own[j] ? 1 : 0;
      if (slot == 0 && s >= num_slots && first + j < count) args.row_of[first + j] = -1;
    }
    const Scan scan = BlockScan(num_own, shared->scan[turn]);
    int row = next + scan.before;
    next += scan.total;
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      if (!is_own[j]) continue;
      args.row_of[first + j] = row;
      args.token_of_row[row] = (first + j) / k;
      ++row;
    }
  }
}

}  // namespace

absl::Status Permute(const PermuteArgs& args, cudaStream_t stream) {
  constexpr int64_t kMaxCount = (int64_t{1} << 31) - 1 - kPiece;
  if (args.num_experts_per_tok < 1 || args.num_tokens < 0 ||
      args.num_tokens > kMaxCount / args.num_experts_per_tok) {
    return InvalidArgument("{} tokens of {} experts each, the limit of both together is {}",
                           args.num_tokens, args.num_experts_per_tok, kMaxCount);
  }
  if (args.num_slots < 0 || args.first_slot < 0) {
    return InvalidArgument("{} slots from {} on, both must not be negative", args.num_slots,
                           args.first_slot);
  }
  // A block even for no slot: row_of is written.
  const auto blocks = static_cast<unsigned>(args.num_slots > 0 ? args.num_slots : 1);
  return gpu::Launch(
      PermuteKernel,
      {.grid = {blocks}, .block = {kThreads}, .shared_bytes = sizeof(Shared), .stream = stream},
      args);
}

}  // namespace nibble::kernels::cuda
