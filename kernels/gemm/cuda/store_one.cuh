// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One element of a matrix whose type is known at run time; kernels/device/elements.cuh has eight.
#pragma once

#include "base/cuda/float16.cuh"
#include "kernels/device/device_matrix.h"

namespace nibble::kernels::cuda {

// `index` counts elements.
__device__ __forceinline__ void StoreOne(const DeviceMatrix& d, int64_t index, float value) {
  switch (d.dtype) {
    case DType::kBf16:
      static_cast<gpu::Bf16*>(d.data)[index] = gpu::ToBf16(value);
      return;
    case DType::kF16:
      static_cast<gpu::Half*>(d.data)[index] = gpu::ToHalf(value);
      return;
    default:
      static_cast<float*>(d.data)[index] = value;
  }
}

}  // namespace nibble::kernels::cuda
