// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Which tile of tokens and how many pieces of k a call of the wgmma kernel has: the cheapest of all
// by an estimate in cycles and bytes. The figures are an H100's data sheet and arithmetic
// (README.md), not measurements; what they decide is an order.

#include <algorithm>
#include <iterator>

#include "kernels/gemm/cuda/gemm_plan.h"
#include "kernels/gemm/cuda/packing.h"
#include "kernels/gemm/cuda/wgmma_gemm.h"
#include "kernels/gemm/cuda/wgmma_schedule.h"
#include "kernels/gemm/panel_loops.h"

namespace nibble::kernels::cuda {
namespace {

constexpr double kCyclesPerNs = 1.7;
constexpr double kMemoryBytesPerNs = 3000;  // of the device
constexpr double kCacheBytesPerNs = 4500;   // second level to all multiprocessors
// Filling the ring, and the way of the sums to D.
constexpr double kTileNs = 1000;
// Zeroing the counters, and the last piece of a tile that waits for the others' sums.
constexpr double kSplitNs = 3000;

constexpr int kExactSplits[] = {2, 4, 8};
constexpr int kMinStagesOfSplit = 4;
// Pieces of k serve to give all multiprocessors a tile; more are not worth their memory.
constexpr int kMostSplitTilesPerSm = 2;

// Counters come first in the workspace; the sums behind them are aligned.
constexpr int64_t kCounterAlignment = 1024;

// Cycles of a stage (128 k) of a tile on a multiprocessor.
double StageCycles(Form form, int tokens) {
  // 4096 products a cycle.
  const double multiply = 4.0 * tokens;
  // Integer instructions for eight weights (masks, a shift, additions or multiplications, flips):
  // 64 lanes a cycle each of two kinds, of which the busier one counts.
  const double weights = kWgmmaChannels * kWgmmaStageK;
  const double decode = IsInt4(form) ? weights * 5 / 8 / 64 : 0;
  // A multiplication for each sum and group; floats one more, at twice the rate.
  const double scale = WgmmaDrains(form) ? 2.0 * tokens : 0;
  return std::max(multiply, decode + scale);
}

bool HasShortGroups(const GemmDesc& desc) {
  return desc.format == WeightFormat::kW4A8 && MakeWeightLayout(desc).group_shift < 7;
}

int64_t ChannelTiles(const GemmDesc& desc) { return CeilDiv(desc.n, kWgmmaChannels); }

int64_t WorkspaceBytesFor(int64_t output_tiles, int tokens, int splits) {
  if (splits == 1) return 0;
  const int64_t counters = RoundUp(output_tiles * 2 * int64_t{sizeof(uint32_t)}, kCounterAlignment);
  return counters + output_tiles * splits * tokens * kWgmmaChannels * int64_t{sizeof(int32_t)};
}

}  // namespace

absl::Status SupportsWgmma(const GemmDesc& desc, const gpu::DeviceCaps& caps) {
#ifndef NIBBLE_SM90
  return Unimplemented("gemm: this program was built without kernels for sm_90a");
#else
  NIBBLE_RETURN_IF_ERROR(CheckLayout(desc));
  if (!TakesInt8(desc.format)) {
    return Unimplemented("gemm: the wgmma kernel takes int8 activations, not {}", ToString(desc));
  }
  constexpr int kHopper = 90;
  if (caps.sm != kHopper) {
    return Unimplemented("gemm: the wgmma kernel is for compute capability 9.0, not {}.{}",
                         caps.sm / 10, caps.sm % 10);
  }
  if (caps.max_shared_bytes < kWgmmaSharedBytes) {
    return Unimplemented("gemm: the wgmma kernel takes {} bytes of shared memory, a block has {}",
                         kWgmmaSharedBytes, caps.max_shared_bytes);
  }
  return absl::OkStatus();
#endif
}

GemmPlan PlanWgmmaTile(const GemmDesc& desc, int64_t num_tokens, int tokens, int splits,
                       const gpu::DeviceCaps& caps) {
  const Form form = FormOf(desc);
  const int64_t output_tiles = ChannelTiles(desc) * CeilDiv(num_tokens, tokens);
  return {.kernel = GemmKernel::kWgmma,
          .tile_m = kWgmmaChannels,
          .tile_n = tokens,
          .k_parts = KParts(desc),
          .split_k = splits,
          .stages = WgmmaStages(form, tokens),
          .shared_bytes = kWgmmaSharedBytes,
          .workspace_bytes = WorkspaceBytesFor(output_tiles, tokens, splits),
          .blocks = static_cast<int>(std::min<int64_t>(output_tiles * splits, caps.num_sms))};
}

std::vector<GemmPlan> WgmmaCandidates(const GemmDesc& desc, int64_t num_tokens,
                                      const gpu::DeviceCaps& caps) {
  const Form form = FormOf(desc);
  const int64_t num_stages = MakeWeightLayout(desc).padded_k / kWgmmaStageK;
  std::vector<GemmPlan> plans;
  for (const int tokens : kWgmmaTokens) {
    if (!WgmmaTakes(form, /*gathers=*/false, HasShortGroups(desc), tokens)) continue;
    // All tokens fit a smaller one.
    if (!plans.empty() && plans.back().tile_n >= num_tokens) break;
    const int64_t output_tiles = ChannelTiles(desc) * CeilDiv(num_tokens, tokens);
    const auto add = [&](int splits) {
      if (output_tiles * splits > int64_t{kMostSplitTilesPerSm} * caps.num_sms) return;
      plans.push_back(PlanWgmmaTile(desc, num_tokens, tokens, splits, caps));
    };
    plans.push_back(PlanWgmmaTile(desc, num_tokens, tokens, 1, caps));
    if (!SumsAreExact(form)) {
      if (KParts(desc) > 1) add(KParts(desc));
      continue;
    }
    for (const int splits : kExactSplits) {
      if (num_stages >= int64_t{splits} * kMinStagesOfSplit) add(splits);
    }
  }
  return plans;
}

int64_t WgmmaWorkspaceBytes(const GemmDesc& desc, int64_t max_tokens, const gpu::DeviceCaps& caps) {
  // Nothing is split that has more tiles than this with the largest one. Plans are the same for all
  // numbers of tokens between two multiples of the smallest tile.
  constexpr int kStep = kWgmmaTokens[0];
  const int64_t most_tokens = kMostSplitTilesPerSm * int64_t{caps.num_sms} / 2 /
                              ChannelTiles(desc) * *std::rbegin(kWgmmaTokens);
  int64_t bytes = 0;
  for (int64_t tokens = kStep; tokens < std::min(max_tokens, most_tokens) + kStep;
       tokens += kStep) {
    bytes = std::max(bytes, PlanWgmma(desc, tokens, caps).workspace_bytes);
  }
  return bytes;
}

double EstimateWgmmaNs(const GemmDesc& desc, int64_t num_tokens, const GemmPlan& plan,
                       const gpu::DeviceCaps& caps) {
  const Form form = FormOf(desc);
  const WeightLayout layout = MakeWeightLayout(desc);
  const int64_t token_tiles = CeilDiv(num_tokens, plan.tile_n);
  const int64_t tiles = ChannelTiles(desc) * token_tiles * plan.split_k;
  const double stages = static_cast<double>(layout.padded_k) / kWgmmaStageK / plan.split_k;
  const double stage_ns =
      std::max(StageCycles(form, plan.tile_n) / kCyclesPerNs,
               WgmmaStageBytes(form, plan.tile_n) * caps.num_sms / kCacheBytesPerNs);
  const auto waves = static_cast<double>(CeilDiv(tiles, caps.num_sms));
  const double compute_ns = waves * (stages * stage_ns + kTileNs);
  // Weights come from memory once: token tiles that share them run side by side.
  const double memory_ns =
      static_cast<double>(layout.codes_bytes + layout.scales_bytes) / kMemoryBytesPerNs + kTileNs;
  double ns = std::max(compute_ns, memory_ns);
  if (plan.split_k > 1) {
    const double sums = static_cast<double>(tiles) * plan.tile_n * kWgmmaChannels;
    ns += kSplitNs + 2 * sums * sizeof(int32_t) / kCacheBytesPerNs;
  }
  return ns;
}

GemmPlan PlanWgmma(const GemmDesc& desc, int64_t num_tokens, const gpu::DeviceCaps& caps) {
  const std::vector<GemmPlan> plans = WgmmaCandidates(desc, num_tokens, caps);
  return *std::min_element(plans.begin(), plans.end(), [&](const auto& a, const auto& b) {
    return EstimateWgmmaNs(desc, num_tokens, a, caps) < EstimateWgmmaNs(desc, num_tokens, b, caps);
  });
}

GemmPlan PlanWgmmaGrouped(const GemmDesc& desc, int64_t num_groups, int64_t max_rows,
                          const gpu::DeviceCaps& caps) {
  // Rows that a group has when they are spread evenly; a tile that holds half as many again seldom
  // reads a group's weights twice.
  const int64_t rows = CeilDiv(max_rows * 3, std::max<int64_t>(num_groups, 1) * 2);
  int tokens = 0;
  for (const int candidate : kWgmmaTokens) {
    if (!WgmmaTakes(FormOf(desc), /*gathers=*/true, HasShortGroups(desc), candidate)) continue;
    tokens = candidate;
    if (tokens >= rows) break;
  }
  GemmPlan plan = PlanWgmmaTile(desc, max_rows, tokens, 1, caps);
  // How many tiles there are is known on the device alone.
  plan.blocks = caps.num_sms;
  return plan;
}

}  // namespace nibble::kernels::cuda
