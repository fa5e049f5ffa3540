// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/cuda/tiled_kernel.cuh"

namespace nibble::kernels::cuda {

absl::Status LaunchTiledF16(const GemmLaunch& launch) { return LaunchTiled<Form::kF16>(launch); }

}  // namespace nibble::kernels::cuda
