// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/cuda/tensor_map.h"

#include <cstdint>

namespace nibble::gpu {

absl::StatusOr<TensorMap> MakeTensorMap2d(const Tensor2d& tensor) {
  constexpr int64_t kMaxSize = int64_t{1} << 32;
  constexpr int64_t kMaxStride = int64_t{1} << 40;
  constexpr int kMaxBox = 256;
  constexpr int kSwizzleBytes = 128;
  if (tensor.global == nullptr || reinterpret_cast<uintptr_t>(tensor.global) % 16 != 0) {
    return InvalidArgument("the matrix of a tensor map is at {}, not at a multiple of 16",
                           tensor.global);
  }
  const int bytes = tensor.element_bytes;
  if (bytes != 1 && bytes != 2 && bytes != 4) {
    return InvalidArgument("elements of a tensor map of {} bytes; they have 1, 2 or 4", bytes);
  }
  if (tensor.inner < 1 || tensor.inner > kMaxSize || tensor.outer < 1 || tensor.outer > kMaxSize) {
    return InvalidArgument("a tensor map of {} x {} elements; the limits are 1 and {}",
                           tensor.outer, tensor.inner, kMaxSize);
  }
  if (tensor.row_stride_bytes % 16 != 0 || tensor.row_stride_bytes >= kMaxStride ||
      tensor.row_stride_bytes < tensor.inner * bytes) {
    return InvalidArgument(
        "rows of a tensor map {} bytes apart; they are {} long, and the distance is a multiple of "
        "16 below {}",
        tensor.row_stride_bytes, tensor.inner * bytes, kMaxStride);
  }
  if (tensor.box_inner < 1 || tensor.box_inner > kMaxBox || tensor.box_outer < 1 ||
      tensor.box_outer > kMaxBox || tensor.box_inner * bytes % 16 != 0) {
    return InvalidArgument(
        "boxes of a tensor map of {} x {} elements of {} bytes; the limits are 1 and {}, and rows "
        "are multiples of 16 bytes",
        tensor.box_outer, tensor.box_inner, bytes, kMaxBox);
  }
  if (tensor.swizzle_128 && tensor.box_inner * bytes != kSwizzleBytes) {
    return InvalidArgument("a swizzled box has rows of {} bytes; they have {}",
                           tensor.box_inner * bytes, kSwizzleBytes);
  }
  TensorMap map{};
  NIBBLE_RETURN_IF_ERROR(EncodeTensorMap2d(tensor, &map));
  return map;
}

}  // namespace nibble::gpu
