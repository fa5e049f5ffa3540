// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/cuda/wgmma_kernel.cuh"

namespace nibble::kernels::cuda {

absl::Status LaunchWgmmaFloatScales(const WgmmaLaunch& launch) {
  return LaunchWgmma<WgmmaFloatScales>(launch);
}

}  // namespace nibble::kernels::cuda
