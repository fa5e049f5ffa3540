// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/cuda/skinny_kernel.cuh"

namespace nibble::kernels::cuda {

absl::Status LaunchSkinnyInteger(const GemmLaunch& launch) {
  return LaunchSkinny<Form::kInteger>(launch);
}

}  // namespace nibble::kernels::cuda
