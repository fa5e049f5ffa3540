// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <algorithm>

#include "base/cuda/launch.h"
#include "comm/codec/cuda/codec.h"
#include "comm/codec/cuda/codec_wire.cuh"
#include "comm/codec/cuda/device_rows.h"
#include "comm/codec/cuda/dispatch_bits.h"

namespace nibble::comm::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kMaxBlocks = int64_t{1} << 16;

struct Pieces {
  const uint8_t* data[kMaxPieces];
  int count;
};

// Groups of a warp at a time, and this thread's of them: group(first) for each warp-wide step.
struct Steps {
  __device__ explicit Steps(const GroupLayout& layout)
      : per_warp(gpu::kWarpSize / TeamSize(layout)),
        first((static_cast<int64_t>(blockIdx.x) * (kThreads / gpu::kWarpSize) + gpu::WarpId()) *
              per_warp),
        stride(static_cast<int64_t>(gridDim.x) * (kThreads / gpu::kWarpSize) * per_warp),
        own(gpu::LaneId() / TeamSize(layout)) {}

  int per_warp;
  int64_t first;
  int64_t stride;
  int own;
};

// The bytes between the sections: fewer than 16 behind each.
__device__ void ClearGap(uint8_t* section, int64_t bytes) {
  const int64_t at = bytes + threadIdx.x;
  if (at < (bytes + 15) / 16 * 16) section[at] = 0;
}
template <int kBits>
__device__ void ClearGaps(const GroupLayout& layout, int64_t count, uint8_t* out) {
  if (blockIdx.x != 0 || kBits > 8) return;  // those have whole blocks alone
  if (kBits == 5 || kBits == 3) {
    ClearGap(out + layout.singles, count * layout.group_size / 8);
  }
  if (kBits == 6 || kBits < 4) ClearGap(out + layout.pairs, count * layout.group_size / 4);
  ClearGap(out + layout.scales, count * (layout.log2_scales ? 1 : 2));
  ClearGap(out + layout.zeros, count);
  if (!layout.spikes) return;
  ClearGap(out + layout.spike_values, count * 4);
  ClearGap(out + layout.spike_indices, count * 2);
}

template <int kBits>
__global__ void __launch_bounds__(kThreads)
    EncodeKernel(GroupLayout layout, Rows rows, int64_t first, int64_t count, uint8_t* out) {
  const Steps steps(layout);
  for (int64_t at = steps.first; at < count; at += steps.stride) {
    const int64_t group = at + steps.own;
    const bool has_group = group < count;
    float x[kThreadValues];
    const Span span =
        SpanOf(rows, static_cast<uint32_t>(first + (has_group ? group : at)), TeamPart(layout));
    LoadValues(rows, span, x);
    EncodeThread<kBits>(layout, layout.rotation, has_group, x, group, out);
  }
  ClearGaps<kBits>(layout, count, out);
}

template <int kBits>
__global__ void __launch_bounds__(kThreads)
    DecodeKernel(GroupLayout layout, Rows rows, Pieces pieces, int64_t first, int64_t count) {
  const Steps steps(layout);
  for (int64_t at = steps.first; at < count; at += steps.stride) {
    const int64_t group = at + steps.own;
    const bool has_group = group < count;
    float x[kThreadValues];
    SumThread<kBits>(
        layout, has_group, [&](int i) { return pieces.data[i]; }, pieces.count, group, x);
    if (layout.rotation) Rotate(layout, x);
    if (!has_group) continue;
    StoreValues(rows, SpanOf(rows, static_cast<uint32_t>(first + group), TeamPart(layout)), x);
  }
}

template <int kBits>
__global__ void __launch_bounds__(kThreads)
    ReduceKernel(GroupLayout layout, Pieces pieces, int64_t count, uint8_t* out) {
  const Steps steps(layout);
  for (int64_t at = steps.first; at < count; at += steps.stride) {
    const int64_t group = at + steps.own;
    const bool has_group = group < count;
    float x[kThreadValues];
    SumThread<kBits>(
        layout, has_group, [&](int i) { return pieces.data[i]; }, pieces.count, group, x);
    __syncwarp();  // `out` may be a piece: a team's lanes have read what its first one writes
    EncodeThread<kBits>(layout, false, has_group, x, group, out);
  }
  ClearGaps<kBits>(layout, count, out);
}

gpu::LaunchConfig ConfigOf(const CodecDesc& desc, int64_t count, cudaStream_t stream) {
  const int64_t per_block = kThreads * kThreadValues / desc.group_size;
  return {
      .grid = {static_cast<unsigned>(std::min((count + per_block - 1) / per_block, kMaxBlocks))},
      .block = {kThreads},
      .stream = stream};
}

absl::Status CheckCodes(const uint8_t* codes) {
  if (reinterpret_cast<uintptr_t>(codes) % 16 != 0) {
    return InvalidArgument("codes lie {} bytes behind a multiple of 16",
                           reinterpret_cast<uintptr_t>(codes) % 16);
  }
  return absl::OkStatus();
}

absl::StatusOr<Pieces> PiecesOf(const uint8_t* const* pieces, int num_pieces) {
  if (num_pieces < 1 || num_pieces > kMaxPieces) {
    return InvalidArgument("a sum of {} pieces, the limits are 1 and {}", num_pieces, kMaxPieces);
  }
  Pieces result{};
  result.count = num_pieces;
  for (int i = 0; i < num_pieces; ++i) {
    NIBBLE_RETURN_IF_ERROR(CheckCodes(pieces[i]));
    result.data[i] = pieces[i];
  }
  return result;
}

}  // namespace

absl::Status Encode(const CodecDesc& desc, const DeviceRows& rows, int64_t first, int64_t count,
                    uint8_t* out, cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(CheckGroups(desc, first, count));
  NIBBLE_RETURN_IF_ERROR(CheckCodes(out));
  NIBBLE_ASSIGN_OR_RETURN(const Rows view, RowsOf(desc, rows));
  if (count == 0) return absl::OkStatus();
  const GroupLayout layout = LayoutOf(desc, count);
  return DispatchBits(desc.bits, [&](auto bits) {
    return gpu::Launch(EncodeKernel<bits()>, ConfigOf(desc, count, stream), layout, view, first,
                       count, out);
  });
}

absl::Status DecodeSum(const CodecDesc& desc, const DeviceRows& rows, const uint8_t* const* pieces,
                       int num_pieces, int64_t first, int64_t count, cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(CheckGroups(desc, first, count));
  NIBBLE_ASSIGN_OR_RETURN(const Rows view, RowsOf(desc, rows));
  NIBBLE_ASSIGN_OR_RETURN(const Pieces all, PiecesOf(pieces, num_pieces));
  if (count == 0) return absl::OkStatus();
  const GroupLayout layout = LayoutOf(desc, count);
  return DispatchBits(desc.bits, [&](auto bits) {
    return gpu::Launch(DecodeKernel<bits()>, ConfigOf(desc, count, stream), layout, view, all,
                       first, count);
  });
}

absl::Status ReduceEncoded(const CodecDesc& desc, const uint8_t* const* pieces, int num_pieces,
                           int64_t count, uint8_t* out, cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(CheckGroups(desc, 0, count));
  NIBBLE_RETURN_IF_ERROR(CheckCodes(out));
  NIBBLE_ASSIGN_OR_RETURN(const Pieces all, PiecesOf(pieces, num_pieces));
  if (count == 0) return absl::OkStatus();
  const GroupLayout layout = LayoutOf(desc, count);
  return DispatchBits(desc.bits, [&](auto bits) {
    return gpu::Launch(ReduceKernel<bits()>, ConfigOf(desc, count, stream), layout, all, count,
                       out);
  });
}

}  // namespace nibble::comm::cuda
