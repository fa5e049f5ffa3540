// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/cuda/tiled_kernel.cuh"

namespace nibble::kernels::cuda {

absl::Status LaunchTiledBf16(const GemmLaunch& launch) { return LaunchTiled<Form::kBf16>(launch); }

}  // namespace nibble::kernels::cuda
