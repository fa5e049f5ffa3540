// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/cuda/skinny_kernel.cuh"

namespace nibble::kernels::cuda {

absl::Status LaunchSkinnyF16(const GemmLaunch& launch) { return LaunchSkinny<Form::kF16>(launch); }

}  // namespace nibble::kernels::cuda
