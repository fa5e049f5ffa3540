// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/cuda/wgmma_gemm.h"

#include <limits>

#include "base/cuda/buffer.h"
#include "base/cuda/tensor_map.h"
#include "kernels/gemm/cuda/gemm_plan.h"
#include "kernels/gemm/cuda/wgmma_launch.h"
#include "kernels/gemm/panel_loops.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int64_t kMaxTiles = std::numeric_limits<int32_t>::max() / 2;

absl::Status LaunchForm(Form form, const WgmmaLaunch& launch) {
#ifdef NIBBLE_SM90
  switch (form) {
    case Form::kFolded:
      return LaunchWgmmaFolded(launch);
    case Form::kInteger:
      return LaunchWgmmaInteger(launch);
    case Form::kFloatScales:
      return LaunchWgmmaFloatScales(launch);
    case Form::kInt8:
      return LaunchWgmmaInt8(launch);
    default:
      break;
  }
#endif
  return Internal("gemm: no wgmma kernel of form {} with tiles of {} tokens",
                  static_cast<int>(form), launch.tokens);
}

}  // namespace

absl::Status LaunchWgmma(const GemmDesc& desc, const GemmLaunch& launch) {
  const GemmKernelArgs& args = launch.args;
  const GemmPlan& plan = launch.plan;
  const int64_t channel_tiles = CeilDiv(args.n, plan.tile_m);
  const int64_t token_tiles = CeilDiv(args.rows, plan.tile_n);
  // Every group has at most one tile that is not full.
  const int64_t num_tiles = channel_tiles * (token_tiles + args.num_groups) * plan.split_k;
  if (num_tiles > kMaxTiles) {
    return InvalidArgument("gemm: {} with {} rows takes {} tiles, the limit is {}", ToString(desc),
                           args.rows, num_tiles, kMaxTiles);
  }
  if (args.num_groups > kWgmmaMaxGroups) {
    return InvalidArgument("gemm: {} groups, the limit is {}", args.num_groups, kWgmmaMaxGroups);
  }
  WgmmaLaunch wgmma = {.tokens = plan.tile_n,
                       .blocks = plan.blocks,
                       .args = {.gemm = args,
                                .grid = {.channel_tiles = static_cast<int>(channel_tiles),
                                         .token_tiles = static_cast<int>(token_tiles),
                                         .splits = plan.split_k,
                                         .num_stages = args.num_stages},
                                .counters = nullptr},
                       .map = {},
                       .stream = launch.stream};
  if (plan.split_k > 1) {
    const int64_t output_tiles = channel_tiles * token_tiles;
    const int64_t sums =
        output_tiles * plan.split_k * plan.tile_n * plan.tile_m * int64_t{sizeof(int32_t)};
    const int64_t counters = plan.workspace_bytes - sums;
    auto* const workspace = static_cast<uint8_t*>(args.partials);
    wgmma.args.counters = reinterpret_cast<uint32_t*>(workspace);
    wgmma.args.gemm.partials = workspace + counters;
    NIBBLE_RETURN_IF_ERROR(
        gpu::ZeroDevice(workspace, static_cast<size_t>(counters), launch.stream));
  }
  if (args.a_rows == nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(wgmma.map,
                            gpu::MakeTensorMap2d({.global = args.a,
                                                  .element_bytes = 1,
                                                  .inner = args.a_row_bytes,
                                                  .outer = args.rows,
                                                  .row_stride_bytes = args.a_stride_bytes,
                                                  .box_inner = kWgmmaStageK,
                                                  .box_outer = plan.tile_n,
                                                  .swizzle_128 = true}));
  }
  return LaunchForm(FormOf(desc), wgmma);
}

}  // namespace nibble::kernels::cuda
