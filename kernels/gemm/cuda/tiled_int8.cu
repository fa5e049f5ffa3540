// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/cuda/tiled_kernel.cuh"

namespace nibble::kernels::cuda {

absl::Status LaunchTiledInt8(const GemmLaunch& launch) { return LaunchTiled<Form::kInt8>(launch); }

}  // namespace nibble::kernels::cuda
