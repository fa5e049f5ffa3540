// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/cuda/wgmma_kernel.cuh"

namespace nibble::kernels::cuda {

absl::Status LaunchWgmmaFolded(const WgmmaLaunch& launch) {
  return LaunchWgmma<WgmmaFolded>(launch);
}

}  // namespace nibble::kernels::cuda
