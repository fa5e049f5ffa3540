// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The driver's part of tensor_map.h, asked for at run time: the program is not linked to it.

#include <cuda.h>
#include <cuda_runtime.h>

#include <atomic>
#include <cstring>

#include "base/cuda/error.h"
#include "base/cuda/tensor_map.h"

namespace nibble::gpu {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// Looked up until it is found: each matrix product of a step asks.
absl::StatusOr<Encode> FindEncode() {
  static std::atomic<Encode> known = nullptr;
  if (const Encode encode = known.load(); encode != nullptr) return encode;
  constexpr unsigned kVersion = 12000;  // that first had it
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  NIBBLE_RETURN_IF_CUDA_ERROR(cudaGetDriverEntryPointByVersion(
      "cuTensorMapEncodeTiled", &function, kVersion, cudaEnableDefault, &found));
  if (found != cudaDriverEntryPointSuccess || function == nullptr) {
    return Unavailable("the CUDA driver has no cuTensorMapEncodeTiled");
  }
  const auto encode = reinterpret_cast<Encode>(function);
  known.store(encode);
  return encode;
}

}  // namespace

absl::Status EncodeTensorMap2d(const Tensor2d& tensor, TensorMap* map) {
  static_assert(sizeof(CUtensorMap) == sizeof(TensorMap));
  NIBBLE_ASSIGN_OR_RETURN(const Encode encode, FindEncode());
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(tensor.inner),
                              static_cast<cuuint64_t>(tensor.outer)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(tensor.row_stride_bytes)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(tensor.box_inner),
                            static_cast<cuuint32_t>(tensor.box_outer)};
  const cuuint32_t element_strides[] = {1, 1};
  CUtensorMap encoded;
  const CUresult result =
      encode(&encoded,
             tensor.element_bytes == 1   ? CU_TENSOR_MAP_DATA_TYPE_UINT8
             : tensor.element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_UINT16
                                         : CU_TENSOR_MAP_DATA_TYPE_UINT32,
             2, const_cast<void*>(tensor.global), sizes, strides, box, element_strides,
             CU_TENSOR_MAP_INTERLEAVE_NONE,
             tensor.swizzle_128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    return Internal("cuTensorMapEncodeTiled: CUDA driver error {}", static_cast<int>(result));
  }
  std::memcpy(map, &encoded, sizeof(encoded));
  return absl::OkStatus();
}

}  // namespace nibble::gpu
