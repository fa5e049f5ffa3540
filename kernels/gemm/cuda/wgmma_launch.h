// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Between wgmma_gemm.cc, which checks and arranges a call, and the kernels of the four forms.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/tensor_map.h"
#include "base/status.h"
#include "kernels/gemm/cuda/gemm_kernels.h"
#include "kernels/gemm/cuda/wgmma_schedule.h"

namespace nibble::kernels::cuda {

// Parameters of the kernel.
struct WgmmaArgs {
  // Of gemm_kernels.h; `rows` is of D, token_tiles is that of `grid`. `partials` is
  // [output tiles, split_k, 2 math warpgroups, tokens of a tile / 8, 128 threads] of 16 bytes.
  GemmKernelArgs gemm;
  // Grouped: channel_tiles and num_stages alone are used.
  WgmmaGrid grid;
  uint32_t* counters;  // where k is split: [output tiles, 2], 0 at the start
};

struct WgmmaLaunch {
  int tokens = 0;  // of a tile
  int blocks = 0;
  WgmmaArgs args{};
  gpu::TensorMap map{};  // of the tokens; rows that are gathered have none
  cudaStream_t stream = nullptr;
};

absl::Status LaunchWgmmaFolded(const WgmmaLaunch& launch);
absl::Status LaunchWgmmaInteger(const WgmmaLaunch& launch);
absl::Status LaunchWgmmaFloatScales(const WgmmaLaunch& launch);
absl::Status LaunchWgmmaInt8(const WgmmaLaunch& launch);

}  // namespace nibble::kernels::cuda
