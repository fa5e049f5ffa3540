// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Inside the folder: what Run() and RunGrouped() hand to kernels.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/launch.h"
#include "kernels/gemm/cuda/gemm.h"

namespace nibble::kernels::cuda {

// What a weight is to a kernel, one instance of its template each.
enum class Form { kFolded, kInteger, kFloatScales, kInt8, kBf16, kF16 };

constexpr bool IsInt4(Form form) {
  return form == Form::kFolded || form == Form::kInteger || form == Form::kFloatScales;
}
constexpr bool IsHalf(Form form) { return form == Form::kBf16 || form == Form::kF16; }
// int32 sums, exact in any order.
constexpr bool SumsAreExact(Form form) {
  return form == Form::kFolded || form == Form::kInteger || form == Form::kInt8;
}

// Codes of 16 channels and one stage (128 bytes of a row of activations).
constexpr int UnitStageBytes(Form form) { return IsInt4(form) ? 1024 : 2048; }
// Room for the group scales of 16 channels and one stage (four groups at most), and for their zero
// points; both where a form has them.
constexpr int ScaleStageBytes(Form form) {
  return !IsInt4(form) ? 0 : form == Form::kFloatScales ? 4 * 64 : 4 * 16;
}
constexpr int ZeroStageBytes(Form form) {
  return IsInt4(form) && form != Form::kFolded ? 4 * 16 : 0;
}

// Parameters of the kernels; all pointers are to device memory.
struct GemmKernelArgs {
  GroupedWeights::Entry weight;  // of a product without groups
  // The layout of weights (weight_layout.h).
  int n;
  int num_units;   // padded_n / 16
  int num_stages;  // padded_k in stages
  int group_shift;
  int num_scale_groups;
  int64_t channel_offset;
  int64_t integer_offset;

  // Tokens: rows of a_row_bytes bytes, a_stride_bytes apart.
  const uint8_t* a;
  int64_t a_stride_bytes;
  int64_t a_row_bytes;
  const float* a_scales;
  int rows;  // of D

  const float* bias;  // [n] or null
  DeviceMatrix d;

  // k in parts: part i has stages PartBegin(args, i) up to PartBegin(args, i + 1).
  int k_parts;
  int parts_shift;  // k_parts is 1 << parts_shift
  int split_k;      // blocks that share k, each k_parts / split_k parts; > 1: sums to `partials`
  void* partials;   // [split_k, rows, num_units * 16] int32 or float
  // Blocks of a channel tile: tiles of tokens, or grouped as many as there may be.
  int token_tiles;

  // Grouped.
  const GroupedWeights::Entry* entries;  // null: not grouped
  const int32_t* offsets;
  const int32_t* a_rows;
  int num_groups;
};

// The first stage of a part; parts are within one stage of each other. No overflow: there are at
// most 16 parts of 2^25 stages.
constexpr int PartBegin(const GemmKernelArgs& args, int part) {
  return args.num_stages * part >> args.parts_shift;
}

// One of these for each form and kernel; `plan.kernel` is theirs.
struct GemmLaunch {
  const GemmKernelArgs& args;
  const GemmPlan& plan;
  cudaStream_t stream;
};
absl::Status LaunchSkinnyFolded(const GemmLaunch& launch);
absl::Status LaunchSkinnyInteger(const GemmLaunch& launch);
absl::Status LaunchSkinnyFloatScales(const GemmLaunch& launch);
absl::Status LaunchSkinnyInt8(const GemmLaunch& launch);
absl::Status LaunchSkinnyBf16(const GemmLaunch& launch);
absl::Status LaunchSkinnyF16(const GemmLaunch& launch);
absl::Status LaunchTiledFolded(const GemmLaunch& launch);
absl::Status LaunchTiledInteger(const GemmLaunch& launch);
absl::Status LaunchTiledFloatScales(const GemmLaunch& launch);
absl::Status LaunchTiledInt8(const GemmLaunch& launch);
absl::Status LaunchTiledBf16(const GemmLaunch& launch);
absl::Status LaunchTiledF16(const GemmLaunch& launch);
absl::Status LaunchFloat(const GemmLaunch& launch);

// kTiled: output channels and threads of a block.
inline constexpr int kTiledChannels = 128;
inline constexpr int kTiledThreads = 128;
inline constexpr int kTiledUnitsPerWarp = 2;
// Bytes of one stage of its pipeline, and of as many stages as fit (4 at most).
constexpr int TiledStageBytes(Form form, int tile_n) {
  return kTiledChannels / static_cast<int>(kUnitChannels) *
             (UnitStageBytes(form) + ScaleStageBytes(form) + ZeroStageBytes(form)) +
         tile_n * static_cast<int>(kStageBytes);
}
// Beside the stages: the rows of A, and sums of whole parts where registers do not hold them too.
constexpr int TiledExtraBytes(Form form, int tile_n) {
  return tile_n * 4 + (form == Form::kFloatScales ? kTiledChannels * tile_n * 4 : 0);
}
// Two blocks on a multiprocessor of sm_90 (227 KiB), one on those with the least (99 KiB).
inline constexpr int kMaxTiledSharedBytes = 99 * 1024;
constexpr int TiledStages(Form form, int tile_n) {
  const int stages =
      (kMaxTiledSharedBytes - TiledExtraBytes(form, tile_n)) / TiledStageBytes(form, tile_n);
  return stages < 4 ? stages : 4;
}
constexpr int TiledSharedBytes(Form form, int tile_n) {
  return TiledStages(form, tile_n) * TiledStageBytes(form, tile_n) + TiledExtraBytes(form, tile_n);
}

// kSkinny: stages between two barriers, warps of a block and its shared memory.
constexpr int SkinnyChunkStages(Form form) { return IsInt4(form) ? 2 : 1; }
constexpr int SkinnyWarps(int k_parts) { return k_parts > 8 ? k_parts : 8; }
constexpr int SkinnyBufferBytes(Form form, int tile_n, int k_parts) {
  return SkinnyChunkStages(form) *
         (k_parts * tile_n * static_cast<int>(kStageBytes) +
          SkinnyWarps(k_parts) * (ScaleStageBytes(form) + ZeroStageBytes(form)));
}
// Sums of a warp at the end: 16 channels of every token, with a gap against bank conflicts.
inline constexpr int kSkinnySumPitch = 20;
constexpr int SkinnySharedBytes(Form form, int tile_n, int k_parts) {
  const int sums = SkinnyWarps(k_parts) * tile_n * kSkinnySumPitch * 4;
  const int buffers = 2 * SkinnyBufferBytes(form, tile_n, k_parts);
  return buffers > sums ? buffers : sums;
}

// kFloat.
inline constexpr int kFloatChannels = 64;
inline constexpr int kFloatTokens = 32;

}  // namespace nibble::kernels::cuda
