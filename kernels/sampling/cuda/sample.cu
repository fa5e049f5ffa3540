// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <algorithm>

#include "base/cuda/buffer.h"
#include "base/cuda/launch.h"
#include "base/cuda/shared_memory.cuh"
#include "kernels/sampling/cuda/sample.h"
#include "kernels/sampling/cuda/weighted_row.cuh"

namespace nibble::kernels::cuda {
namespace {

constexpr int64_t kMaxVocab = int64_t{1} << 18;
// Fewer tokens are not worth a block, and the barriers with the others.
constexpr int64_t kMinTokensPerBlock = 2 * kBlockTokens;
constexpr int64_t kMaxGroups = 128;  // of two blocks and more
constexpr int kBlocksPerSm = 2;

struct Workspace {
  uint32_t arrived[kMaxGroups];
};
static_assert(sizeof(Workspace) % alignof(uint4) == 0);

// Of the tokens that weigh `sum` together: as many as hold the share top_p.
__device__ uint64_t MassOf(float top_p, uint64_t sum) {
  const double mass = ceil(static_cast<double>(top_p) * static_cast<double>(sum));
  return max(uint64_t{1}, min(static_cast<uint64_t>(mass), sum));
}
// The sum that the chosen token is the first to reach: above uniform * sum.
__device__ uint64_t TargetOf(float uniform, uint64_t sum) {
  const double target = static_cast<double>(uniform) * static_cast<double>(sum);
  return min(static_cast<uint64_t>(target) + 1, sum);
}

// All threads of the group call; one of them writes *token_id.
__device__ void SampleOne(const SampleParams& params, int vocab_size, WeightedRow* row,
                          bool is_first, int32_t* token_id) {
  const WeightedRow::Best best = row->FindBest();
  // What stays where nothing else is chosen.
  if (is_first) *token_id = best.token_id;
  if (best.key == 0 || !(params.temperature > 0.0F)) return;
  row->SetWeights(LogitOf(best.key), params.temperature,
                  params.min_p > 0.0F ? logf(params.min_p) : -kInfiniteLogit);

  Cut kept;  // everything
  uint64_t sum = 0;
  const bool by_rank = params.top_k > 0 && params.top_k < vocab_size;
  if (by_rank) {
    kept = row->Select(/*by_count=*/true, static_cast<uint64_t>(params.top_k), &sum);
  }
  if (by_rank || params.top_p < 1.0F) sum = row->Sum(kept);
  if (params.top_p < 1.0F && sum > 0) {
    kept = row->Select(/*by_count=*/false, MassOf(params.top_p, sum), &sum);
  }
  if (by_rank) {
    if (sum == 0) return;
    // The host walks these in the order of their logits: the cut where the target is reached is the
    // token.
    uint64_t unused = 0;
    kept = row->Select(/*by_count=*/false, TargetOf(params.uniform, sum), &unused);
    const Cut ties = {.key = kept.key, .times = ~uint64_t{0}, .unit = 1, .ties_only = true};
    row->Sum(ties);
    row->Find(ties, kept.times, token_id);
    return;
  }
  sum = row->Sum(kept);
  if (sum > 0) row->Find(kept, TargetOf(params.uniform, sum), token_id);
}

__global__ __launch_bounds__(kSampleThreads, kBlocksPerSm) void SampleKernel(SampleArgs args,
                                                                             int blocks_per_row,
                                                                             uint32_t* arrived,
                                                                             GroupMemory* memory) {
  auto* const shared = gpu::SharedAs<SampleShared>();
  const int group_id = static_cast<int>(blockIdx.x) / blocks_per_row;
  const int num_groups = static_cast<int>(gridDim.x) / blocks_per_row;
  const int block = static_cast<int>(blockIdx.x) % blocks_per_row;
  RowGroup group(blocks_per_row, block, arrived + group_id, memory + group_id);
  const int vocab_size = static_cast<int>(args.vocab_size);
  for (int64_t row = group_id; row < args.num_rows; row += num_groups) {
    WeightedRow weighted(args.logits + row * args.stride, vocab_size, &group, shared);
    SampleOne(args.params[row], vocab_size, &weighted, block == 0 && threadIdx.x == 0,
              args.token_ids + row);
  }
}

absl::Status Check(const SampleArgs& args) {
  if (args.vocab_size < 1 || args.vocab_size > kMaxVocab) {
    return InvalidArgument("the vocabulary has {} tokens, the limits are 1 and {}", args.vocab_size,
                           kMaxVocab);
  }
  if (args.stride < args.vocab_size) {
    return InvalidArgument("the stride of logits is {}, wanted are {} or more", args.stride,
                           args.vocab_size);
  }
  constexpr int64_t kMaxRows = int64_t{1} << 31;
  if (args.num_rows < 0 || args.num_rows > kMaxRows) {
    return InvalidArgument("the number of rows is {}, the limits are 0 and {}", args.num_rows,
                           kMaxRows);
  }
  return absl::OkStatus();
}

}  // namespace

int64_t SampleWorkspaceBytes(int64_t max_rows, int64_t vocab_size) {
  if (vocab_size <= kMinTokensPerBlock) return 0;  // a block alone
  const int64_t groups = std::min(max_rows, kMaxGroups);
  return static_cast<int64_t>(sizeof(Workspace)) +
         groups * static_cast<int64_t>(sizeof(GroupMemory));
}

absl::Status Sample(const SampleArgs& args, cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(Check(args));
  if (args.num_rows == 0) return absl::OkStatus();
  int device = 0;
  int num_sms = 0;
  NIBBLE_RETURN_IF_CUDA_ERROR(cudaGetDevice(&device));
  NIBBLE_RETURN_IF_CUDA_ERROR(
      cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device));

  // All blocks are there at the same time: they wait for each other.
  const int64_t max_blocks = int64_t{num_sms} * kBlocksPerSm;
  int64_t blocks_per_row = 1;
  if (args.num_rows <= kMaxGroups) {
    const int64_t useful = (args.vocab_size + kMinTokensPerBlock - 1) / kMinTokensPerBlock;
    blocks_per_row = std::clamp<int64_t>(max_blocks / args.num_rows, 1,
                                         std::min<int64_t>(useful, kMaxBlocksPerRow));
  }
  const int64_t groups = std::min(args.num_rows, max_blocks / blocks_per_row);
  uint32_t* arrived = nullptr;
  GroupMemory* memory = nullptr;
  if (blocks_per_row > 1) {
    if (args.workspace == nullptr ||
        reinterpret_cast<uintptr_t>(args.workspace) % alignof(uint4) != 0) {
      return InvalidArgument("the workspace is at {}, wanted is memory aligned to {} bytes",
                             args.workspace, alignof(uint4));
    }
    auto* const workspace = static_cast<Workspace*>(args.workspace);
    arrived = workspace->arrived;
    memory = reinterpret_cast<GroupMemory*>(workspace + 1);
    NIBBLE_RETURN_IF_ERROR(gpu::ZeroDevice(workspace, sizeof(Workspace), stream));
  }
  return gpu::Launch(SampleKernel,
                     {.grid = {static_cast<unsigned>(groups * blocks_per_row)},
                      .block = {kSampleThreads},
                      .shared_bytes = sizeof(SampleShared),
                      .stream = stream,
                      .cooperative = blocks_per_row > 1},
                     args, blocks_per_row, arrived, memory);
}

}  // namespace nibble::kernels::cuda
