// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/cuda/wgmma_kernel.cuh"

namespace nibble::kernels::cuda {

absl::Status LaunchWgmmaInt8(const WgmmaLaunch& launch) { return LaunchWgmma<WgmmaInt8>(launch); }

}  // namespace nibble::kernels::cuda
