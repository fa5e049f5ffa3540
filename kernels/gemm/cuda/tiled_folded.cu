// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/cuda/tiled_kernel.cuh"

namespace nibble::kernels::cuda {

absl::Status LaunchTiledFolded(const GemmLaunch& launch) {
  return LaunchTiled<Form::kFolded>(launch);
}

}  // namespace nibble::kernels::cuda
