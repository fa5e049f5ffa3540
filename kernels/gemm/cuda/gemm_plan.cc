// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/cuda/gemm_plan.h"

#include <algorithm>
#include <optional>

#include "kernels/gemm/cuda/cublaslt.h"
#include "kernels/gemm/cuda/packing.h"
#include "kernels/gemm/cuda/wgmma_gemm.h"
#include "kernels/gemm/panel_loops.h"

namespace nibble::kernels::cuda {
namespace {

// A device reads from memory at its full rate while some 20 KiB a multiprocessor are on their way:
// 16 warps of kSkinny with 2 KiB each have half as much again. 132 multiprocessors (H100) want
// this many warps, sm_80 parts have fewer; the choice must not depend on the device.
constexpr int64_t kWantedWarps = 2048;
constexpr int kMaxParts = 16;
constexpr int64_t kMinPartStages = 2;

constexpr int kSkinnyTiles[] = {8, 16};
constexpr int kTiledTiles[] = {32, 64, 128};

int64_t NumStages(const GemmDesc& desc) {
  const WeightLayout layout = MakeWeightLayout(desc);
  return layout.padded_k / (desc.format == WeightFormat::kDense ? kHalfStageK : kIntegerStageK);
}

// Sums that are scaled by group or kept apart by part take registers: no tile of 128 tokens.
int LargestTile(Form form) { return form == Form::kFolded || form == Form::kInt8 ? 128 : 64; }

int64_t ChannelTiles(const GemmDesc& desc) { return CeilDiv(desc.n, kTiledChannels); }

// Blocks that share k when there are too few tiles for all multiprocessors.
int SplitFor(const GemmDesc& desc, int64_t num_tiles, int num_sms) {
  const int parts = KParts(desc);
  if (num_tiles * 2 > num_sms) return 1;
  if (!SumsAreExact(FormOf(desc))) return parts;
  int split = 1;
  while (split < parts && num_tiles * split * 2 < int64_t{num_sms} * 3) split *= 2;
  return split;
}

bool IsFloat(const GemmDesc& desc) {
  return desc.format == WeightFormat::kDense && desc.storage == DType::kF32;
}

GemmPlan PlanFloat() {
  return {.kernel = GemmKernel::kFloat, .tile_m = kFloatChannels, .tile_n = kFloatTokens};
}

GemmPlan PlanTiledFor(const GemmDesc& desc, int64_t num_tokens, const gpu::DeviceCaps& caps) {
  const int64_t channel_tiles = ChannelTiles(desc);
  int tile_n = num_tokens <= 32 ? 32 : 64;
  // A larger tile reads and decodes weights less often, where it leaves work for all.
  if (LargestTile(FormOf(desc)) == 128 && num_tokens > 64 &&
      channel_tiles * CeilDiv(num_tokens, 128) >= caps.num_sms) {
    tile_n = 128;
  }
  const int64_t num_tiles = channel_tiles * CeilDiv(num_tokens, tile_n);
  return PlanTiled(desc, tile_n, SplitFor(desc, num_tiles, caps.num_sms), num_tokens);
}

}  // namespace

std::string_view ToString(GemmKernel kernel) {
  switch (kernel) {
    case GemmKernel::kSkinny:
      return "skinny";
    case GemmKernel::kTiled:
      return "tiled";
    case GemmKernel::kWgmma:
      return "wgmma";
    case GemmKernel::kCublasLt:
      return "cublaslt";
    case GemmKernel::kFloat:
      return "float";
  }
  return "unknown";
}

Form FormOf(const GemmDesc& desc) {
  if (desc.format == WeightFormat::kW8A8) return Form::kInt8;
  if (desc.format == WeightFormat::kDense) {
    return desc.storage == DType::kBf16 ? Form::kBf16 : Form::kF16;
  }
  switch (desc.scale_form) {
    case ScaleForm::kFolded:
      return Form::kFolded;
    case ScaleForm::kInteger:
      return Form::kInteger;
    case ScaleForm::kFloat:
      break;
  }
  return Form::kFloatScales;
}

int KParts(const GemmDesc& desc) {
  const int64_t num_stages = NumStages(desc);
  const int64_t num_units = CeilDiv(desc.n, kUnitChannels);
  int parts = 1;
  while (parts < kMaxParts && num_units * parts < kWantedWarps &&
         num_stages >= parts * 2 * kMinPartStages) {
    parts *= 2;
  }
  return parts;
}

absl::Status Supports(const GemmDesc& desc, const gpu::DeviceCaps& caps) {
  NIBBLE_RETURN_IF_ERROR(CheckLayout(desc));
  constexpr int kOldest = 80;
  if (caps.sm < kOldest) {
    return Unimplemented("gemm: the device has compute capability {}.{}, the oldest is 8.0",
                         caps.sm / 10, caps.sm % 10);
  }
  return absl::OkStatus();
}

GemmPlan PlanSkinny(const GemmDesc& desc, int tile_n) {
  const int parts = KParts(desc);
  return {.kernel = GemmKernel::kSkinny,
          .tile_m = SkinnyWarps(parts) / parts * static_cast<int>(kUnitChannels),
          .tile_n = tile_n,
          .k_parts = parts,
          .split_k = 1,
          .stages = 2,
          .shared_bytes = SkinnySharedBytes(FormOf(desc), tile_n, parts)};
}

GemmPlan PlanTiled(const GemmDesc& desc, int tile_n, int split_k, int64_t num_tokens) {
  const Form form = FormOf(desc);
  const int64_t sums = num_tokens * MakeWeightLayout(desc).padded_n;
  return {.kernel = GemmKernel::kTiled,
          .tile_m = kTiledChannels,
          .tile_n = tile_n,
          .k_parts = KParts(desc),
          .split_k = split_k,
          .stages = TiledStages(form, tile_n),
          .shared_bytes = TiledSharedBytes(form, tile_n),
          .workspace_bytes = split_k > 1 ? sums * split_k * int64_t{sizeof(int32_t)} : 0};
}

namespace {

// Only Hopper has the instructions; asking costs the others no message.
bool TakesWgmma(const GemmDesc& desc, const gpu::DeviceCaps& caps) {
  return caps.sm == 90 && TakesInt8(desc.format) && SupportsWgmma(desc, caps).ok();
}

// kSkinny with a tile for that many tokens, unless there is none or the device has not the memory.
std::optional<GemmPlan> PlanSkinnyFor(const GemmDesc& desc, int64_t num_tokens,
                                      const gpu::DeviceCaps& caps) {
  for (const int tile_n : kSkinnyTiles) {
    if (num_tokens > tile_n) continue;
    const GemmPlan plan = PlanSkinny(desc, tile_n);
    if (plan.shared_bytes <= caps.max_shared_bytes) return plan;
  }
  return std::nullopt;
}

}  // namespace

GemmPlan Choose(const GemmDesc& desc, int64_t num_tokens, const gpu::DeviceCaps& caps,
                bool has_cublaslt) {
  if (IsFloat(desc)) return PlanFloat();
  if (desc.format == WeightFormat::kDense && has_cublaslt) {
    return {.kernel = GemmKernel::kCublasLt, .workspace_bytes = CublasLt::kWorkspaceBytes};
  }
  if (const auto plan = PlanSkinnyFor(desc, num_tokens, caps)) return *plan;
  if (TakesWgmma(desc, caps)) return PlanWgmma(desc, num_tokens, caps);
  return PlanTiledFor(desc, num_tokens, caps);
}

GemmPlan ChooseGrouped(const GemmDesc& desc, int64_t num_groups, int64_t max_rows,
                       const gpu::DeviceCaps& caps) {
  if (IsFloat(desc)) return PlanFloat();
  // Rows that a group has when they are spread evenly; a tile that holds half as many again seldom
  // reads a group's weights twice.
  const int64_t rows = CeilDiv(max_rows * 3, std::max<int64_t>(num_groups, 1) * 2);
  if (const auto plan = PlanSkinnyFor(desc, rows, caps)) return *plan;
  if (TakesWgmma(desc, caps)) return PlanWgmmaGrouped(desc, num_groups, max_rows, caps);
  for (const int tile_n : kTiledTiles) {
    if (rows <= tile_n || tile_n == LargestTile(FormOf(desc))) {
      return PlanTiled(desc, tile_n, 1, max_rows);
    }
  }
  return PlanTiled(desc, 64, 1, max_rows);
}

int64_t WorkspaceBytes(const GemmDesc& desc, int64_t max_tokens, const gpu::DeviceCaps& caps,
                       bool has_cublaslt) {
  const auto bytes = [&](int64_t tokens) {
    return Choose(desc, tokens, caps, has_cublaslt).workspace_bytes;
  };
  int64_t most = bytes(max_tokens);
  if (TakesWgmma(desc, caps)) most = std::max(most, WgmmaWorkspaceBytes(desc, max_tokens, caps));
  // More tokens of the same number of tiles take more, and with some tiles nothing is split.
  const int64_t enough = int64_t{caps.num_sms} * kTiledTiles[2];
  for (int64_t tokens = kTiledTiles[0]; tokens < std::min(max_tokens, enough);
       tokens += kTiledTiles[0]) {
    most = std::max(most, bytes(tokens));
  }
  return most;
}

}  // namespace nibble::kernels::cuda
