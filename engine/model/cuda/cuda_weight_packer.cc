// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/cuda/cuda_weight_packer.h"

#include "base/cuda/device.h"
#include "kernels/gemm/cuda/gemm.h"

namespace nibble::engine {
namespace {

using Packed = absl::StatusOr<std::unique_ptr<kernels::PackedWeight>>;

// The calling thread may be any of a pool's, which have devices of their own.
template <typename Pack>
Packed OnDevice(int device, const Pack& pack) {
  NIBBLE_ASSIGN_OR_RETURN(const gpu::DeviceGuard guard, gpu::DeviceGuard::Create(device));
  return pack();
}

}  // namespace

Packed CudaWeightPacker::PackDense(const void* weights, DType storage, int64_t n, int64_t k,
                                   DType target, ThreadPool* pool) const {
  return OnDevice(device_, [&]() -> Packed {
    return kernels::cuda::PackDense(weights, storage, n, k, target, pool);
  });
}

Packed CudaWeightPacker::PackInt4(const kernels::Int4Weight& weight, kernels::ScaleForm form,
                                  ThreadPool* pool) const {
  return OnDevice(device_, [&]() -> Packed { return kernels::cuda::PackInt4(weight, form, pool); });
}

Packed CudaWeightPacker::PackInt8(const kernels::Int8Weight& weight, ThreadPool* pool) const {
  return OnDevice(device_, [&]() -> Packed { return kernels::cuda::PackInt8(weight, pool); });
}

Packed CudaWeightPacker::PackInt4Float(const kernels::Int4Weight& /*weight*/,
                                       ThreadPool* /*pool*/) const {
  return Unimplemented(
      "4-bit weights with float activations (w4a16) are for CPUs: the CUDA engine multiplies them "
      "by 8-bit activations (--quantization none or w4a8)");
}

}  // namespace nibble::engine
