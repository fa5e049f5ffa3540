// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <algorithm>

#include "base/cuda/buffer.h"
#include "base/cuda/launch.h"
#include "base/cuda/shared_memory.cuh"
#include "kernels/quant/cuda/row_plan.h"
#include "kernels/sampling/cuda/candidates.cuh"
#include "kernels/sampling/cuda/sample.h"
#include "kernels/sampling/cuda/weighted_row.cuh"

namespace nibble::kernels::cuda {
namespace {

constexpr int64_t kMaxVocab = int64_t{1} << 18;
// Fewer tokens are not worth a block, and the barriers with the others.
constexpr int64_t kMinTokensPerBlock = 2 * kBlockTokens;
constexpr int64_t kMaxGroups = 128;  // of two blocks and more
constexpr int64_t kCountersBytes = kMaxGroups * int64_t{sizeof(GroupCounters)};
constexpr int kBlocksPerSm = 2;

// From the top_k tokens. The host walks these in the order of their logits.
__device__ void DrawFromTop(const SampleParams& params, WeightedRow* row, bool is_first_block,
                            SampleShared* shared, int32_t* token_id) {
  const auto top_k = static_cast<uint64_t>(params.top_k);
  const WeightedRow::Selection top =
      row->Select(/*by_count=*/true, [top_k](uint64_t) { return top_k; });
  if (top.through <= kMaxCandidates) {
    const int count = static_cast<int>(top.through);
    row->Gather(max(top.cut.key, 1U), count);
    if (is_first_block) DrawFromCandidates(*row, params, count, shared, token_id);
    return;
  }
  // Many: by searches for the cut where a sum is reached.
  uint64_t sum = row->Sum(top.cut);
  if (sum == 0) return;
  if (params.top_p < 1.0F) {
    const uint64_t mass = MassOf(params.top_p, sum);
    sum = row->Select(/*by_count=*/false, [mass](uint64_t) { return mass; }).sum;
  }
  const uint64_t target = TargetOf(params.uniform, sum);
  const Cut last = row->Select(/*by_count=*/false, [target](uint64_t) { return target; }).cut;
  const Cut ties = {.key = last.key, .times = ~uint64_t{0}, .unit = 1, .ties_only = true};
  row->Sum(ties);
  row->Find(ties, last.times, token_id);
}

// All threads of the group call; one of them writes *token_id.
__device__ void SampleOne(const SampleParams& params, int vocab_size, WeightedRow* row,
                          bool is_first_block, SampleShared* shared, int32_t* token_id) {
  const WeightedRow::Best best = row->FindBest();
  // What stays where nothing else is chosen.
  if (is_first_block && threadIdx.x == 0) *token_id = best.token_id;
  if (best.key == 0 || !(params.temperature > 0.0F)) return;
  row->SetWeights(LogitOf(best.key), params.temperature,
                  params.min_p > 0.0F ? logf(params.min_p) : -kInfiniteLogit);

  if (params.top_k > 0 && params.top_k < vocab_size) {
    DrawFromTop(params, row, is_first_block, shared, token_id);
    return;
  }
  Cut kept;  // everything
  if (params.top_p < 1.0F) {
    const auto mass_of = [&](uint64_t total) { return MassOf(params.top_p, total); };
    kept = row->Select(/*by_count=*/false, mass_of).cut;
  }
  const uint64_t sum = row->Sum(kept);
  if (sum > 0) row->Find(kept, TargetOf(params.uniform, sum), token_id);
}

__global__ __launch_bounds__(kSampleThreads,
                             kBlocksPerSm) void SampleKernel(SampleArgs args, int blocks_per_row,
                                                             GroupCounters* counters,
                                                             GroupMemory* memory) {
  auto* const shared = gpu::SharedAs<SampleShared>();
  const int group_id = static_cast<int>(blockIdx.x) / blocks_per_row;
  const int num_groups = static_cast<int>(gridDim.x) / blocks_per_row;
  const int block = static_cast<int>(blockIdx.x) % blocks_per_row;
  RowGroup group(blocks_per_row, block, counters + group_id, memory + group_id);
  const int vocab_size = static_cast<int>(args.vocab_size);
  for (int64_t row = group_id; row < args.num_rows; row += num_groups) {
    WeightedRow weighted(args.logits + row * args.stride, vocab_size, &group, shared);
    SampleOne(args.params[row], vocab_size, &weighted, block == 0, shared, args.token_ids + row);
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
  return kCountersBytes + groups * static_cast<int64_t>(sizeof(GroupMemory));
}

absl::Status Sample(const SampleArgs& args, cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(Check(args));
  if (args.num_rows == 0) return absl::OkStatus();
  // All blocks are there at the same time: they wait for each other.
  NIBBLE_ASSIGN_OR_RETURN(const int64_t max_blocks,
                          gpu::ResidentBlocks(SampleKernel, kSampleThreads, sizeof(SampleShared)));
  int64_t blocks_per_row = 1;
  if (args.num_rows <= kMaxGroups) {
    const int64_t useful = (args.vocab_size + kMinTokensPerBlock - 1) / kMinTokensPerBlock;
    blocks_per_row = std::clamp<int64_t>(max_blocks / args.num_rows, 1,
                                         std::min<int64_t>(useful, kMaxBlocksPerRow));
  }
  // One for each row, unless rows are more than blocks.
  const int64_t groups = std::min(args.num_rows, max_blocks / blocks_per_row);
  GroupCounters* counters = nullptr;
  GroupMemory* memory = nullptr;
  if (blocks_per_row > 1) {
    if (args.workspace == nullptr ||
        reinterpret_cast<uintptr_t>(args.workspace) % alignof(uint4) != 0) {
      return InvalidArgument("the workspace is at {}, wanted is memory aligned to {} bytes",
                             args.workspace, alignof(uint4));
    }
    counters = static_cast<GroupCounters*>(args.workspace);
    memory = reinterpret_cast<GroupMemory*>(counters + kMaxGroups);
    NIBBLE_RETURN_IF_ERROR(gpu::ZeroDevice(counters, kCountersBytes, stream));
  }
  return gpu::Launch(SampleKernel,
                     {.grid = {static_cast<unsigned>(groups * blocks_per_row)},
                      .block = {kSampleThreads},
                      .shared_bytes = sizeof(SampleShared),
                      .stream = stream,
                      .cooperative = blocks_per_row > 1},
                     args, blocks_per_row, counters, memory);
}

}  // namespace nibble::kernels::cuda
