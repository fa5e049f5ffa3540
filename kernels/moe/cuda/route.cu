// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/cuda/launch.h"
#include "base/cuda/reduce.cuh"
#include "base/cuda/shared_memory.cuh"
#include "kernels/device/exp.cuh"
#include "kernels/moe/cuda/moe.h"
#include "kernels/quant/cuda/row_plan.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kRouteWarps = 4;  // a token each
constexpr int kSlotThreads = 256;
constexpr int kTaken = -0x7FFFFFFF - 1;  // below the key of every logit
constexpr int kNone = 0x7FFFFFFF;        // above every expert

// Integers that are ordered as logits are, and equal where those are equal.
__device__ __forceinline__ int KeyOf(float logit) {
  // + 0: -0 becomes 0. NaN counts as -inf.
  const int bits = logit != logit ? static_cast<int>(0xFF800000U) : __float_as_int(logit + 0.0F);
  // A float is sign and magnitude: negative ones have all other bits turned.
  return bits ^ static_cast<int>(static_cast<unsigned>(bits >> 31) >> 1);
}

// The first expert with the largest key of those that a lane has: lane, lane + 32, ...
struct Best {
  int key = kTaken;
  int expert = kNone;
};
__device__ __forceinline__ Best FindBest(const int* keys, int num_experts) {
  Best best;
  for (int e = gpu::LaneId(); e < num_experts; e += gpu::kWarpSize) {
    if (keys[e] > best.key) best = {keys[e], e};
  }
  return best;
}

// Lanes e mod 16, halves of which are added onto each other: the order of kernels/moe/route.h.
__device__ __forceinline__ float SumOfAll(const float* logits, int num_experts, float max) {
  float sum = 0.0F;
  if (gpu::LaneId() < 16) {
    for (int e = gpu::LaneId(); e < num_experts; e += 16) sum += Exp(logits[e] - max);
  }
  for (int bits = 8; bits > 0; bits /= 2) sum += __shfl_xor_sync(gpu::kFullMask, sum, bits);
  return __shfl_sync(gpu::kFullMask, sum, 0);
}

__global__ __launch_bounds__(kRouteWarps * 32) void RouteKernel(RouteArgs args) {
  const int num_experts = static_cast<int>(args.num_experts);
  const int k = static_cast<int>(args.num_experts_per_tok);
  const int64_t token = int64_t{blockIdx.x} * kRouteWarps + gpu::WarpId();
  if (token >= args.num_tokens) return;
  const float* const logits = args.logits + token * num_experts;
  int32_t* const ids = args.expert_ids + token * k;
  float* const weights = args.weights + token * k;
  // A warp's: keys [num_experts], chosen [k].
  int* const keys = gpu::SharedAs<int>() + gpu::WarpId() * (num_experts + k);
  float* const chosen = reinterpret_cast<float*>(keys + num_experts);

  int any_nan = 0;
  for (int e = gpu::LaneId(); e < num_experts; e += gpu::kWarpSize) {
    const float logit = logits[e];
    any_nan |= logit != logit ? 1 : 0;
    keys[e] = KeyOf(logit);  // read by this lane alone
  }
  any_nan = __any_sync(gpu::kFullMask, any_nan);
  Best best = FindBest(keys, num_experts);
  for (int j = 0; j < k; ++j) {
    const int max_key = __reduce_max_sync(gpu::kFullMask, best.key);
    const int first = __reduce_min_sync(gpu::kFullMask, best.key == max_key ? best.expert : kNone);
    if (best.expert != first) continue;
    ids[j] = first;
    chosen[j] = logits[first];
    keys[first] = kTaken;
    best = FindBest(keys, num_experts);
  }
  __syncwarp();

  const float max = chosen[0];
  if (any_nan != 0 || max - max != 0.0F) {  // or infinite
    for (int j = gpu::LaneId(); j < k; j += gpu::kWarpSize) weights[j] = __int_as_float(0x7FC00000);
    return;
  }
  float sum = 0.0F;
  if (args.renormalize) {
    // Of all lanes the same, one after the other: k is small.
    for (int j = 0; j < k; ++j) sum += Exp(chosen[j] - max);
  } else {
    sum = SumOfAll(logits, num_experts, max);
  }
  for (int j = gpu::LaneId(); j < k; j += gpu::kWarpSize) weights[j] = Exp(chosen[j] - max) / sum;
}

__global__ __launch_bounds__(kSlotThreads) void ChooseSlotsKernel(SlotArgs args) {
  const int64_t i = int64_t{blockIdx.x} * kSlotThreads + threadIdx.x;
  if (i >= args.num_tokens * args.num_experts_per_tok) return;
  const int32_t position = args.positions[i / args.num_experts_per_tok];
  if (position < 0) {
    args.slot_ids[i] = -1;
    return;
  }
  const int32_t expert = args.expert_ids[i];
  args.slot_ids[i] = args.slots[expert * args.max_copies + position % args.num_copies[expert]];
  if (args.load != nullptr) {
    atomicAdd(reinterpret_cast<unsigned long long*>(args.load) + expert, 1ULL);
  }
}

}  // namespace

absl::Status Route(const RouteArgs& args, cudaStream_t stream) {
  if (args.num_experts < 1 || args.num_experts > kMaxExperts) {
    return InvalidArgument("there are {} experts, the limits are 1 and {}", args.num_experts,
                           kMaxExperts);
  }
  if (args.num_experts_per_tok < 1 || args.num_experts_per_tok > args.num_experts) {
    return InvalidArgument("tokens go to {} experts, the limits are 1 and {}",
                           args.num_experts_per_tok, args.num_experts);
  }
  NIBBLE_RETURN_IF_ERROR(CheckGrid(args.num_tokens, 1));
  return gpu::Launch(
      RouteKernel,
      {.grid = {static_cast<unsigned>((args.num_tokens + kRouteWarps - 1) / kRouteWarps)},
       .block = {kRouteWarps * 32},
       .shared_bytes = static_cast<size_t>(args.num_experts + args.num_experts_per_tok) *
                       sizeof(int) * kRouteWarps,
       .stream = stream},
      args);
}

absl::Status ChooseSlots(const SlotArgs& args, cudaStream_t stream) {
  if (args.num_experts_per_tok < 1 || args.num_experts_per_tok > kMaxExperts) {
    return InvalidArgument("tokens go to {} experts, the limits are 1 and {}",
                           args.num_experts_per_tok, kMaxExperts);
  }
  NIBBLE_RETURN_IF_ERROR(CheckGrid(args.num_tokens, args.num_experts_per_tok));
  const int64_t count = args.num_tokens * args.num_experts_per_tok;
  return gpu::Launch(ChooseSlotsKernel,
                     {.grid = {static_cast<unsigned>((count + kSlotThreads - 1) / kSlotThreads)},
                      .block = {kSlotThreads},
                      .stream = stream},
                     args);
}

}  // namespace nibble::kernels::cuda
