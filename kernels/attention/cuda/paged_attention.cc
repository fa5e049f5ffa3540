// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/attention/cuda/paged_attention.h"

#include <utility>

#include "kernels/attention/cuda/nibble_attention.h"
#ifdef NIBBLE_FLASHINFER
#include "kernels/attention/cuda/flashinfer_attention.h"
#endif

namespace nibble::kernels::cuda {
namespace {

absl::Status CheckShape(const AttentionShape& shape) {
  if (shape.num_kv_heads < 1 || shape.num_heads < 1 || shape.num_heads % shape.num_kv_heads != 0) {
    return InvalidArgument("attention: num_heads is {}, the rule is a multiple of num_kv_heads, {}",
                           shape.num_heads, shape.num_kv_heads);
  }
  constexpr int64_t kMaxHeadDim = 256;
  if (shape.head_dim < 8 || shape.head_dim > kMaxHeadDim || shape.head_dim % 8 != 0) {
    return Unimplemented("attention: head_dim is {}, the rule is a multiple of 8 up to {}",
                         shape.head_dim, kMaxHeadDim);
  }
  if (shape.block_size < 1) {
    return InvalidArgument("attention: block_size is {}, the least is 1", shape.block_size);
  }
  if (shape.kv_dtype != DType::kF32 && shape.kv_dtype != DType::kBf16 &&
      shape.kv_dtype != DType::kI8) {
    return Unimplemented("attention: kv_dtype is {}, the choices are float32, bfloat16 and int8",
                         ToString(shape.kv_dtype));
  }
  if (shape.activation != DType::kF32 && shape.activation != DType::kBf16) {
    return Unimplemented("attention: activation is {}, the choices are float32 and bfloat16",
                         ToString(shape.activation));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceAttention>> DeviceAttention::Create(
    const AttentionShape& shape, const AttentionLimits& limits, const gpu::DeviceCaps& caps,
    AttentionBackend backend) {
  NIBBLE_RETURN_IF_ERROR(CheckShape(shape));
  NIBBLE_ASSIGN_OR_RETURN(auto nibble, CreateNibbleAttention(shape, limits, caps));
  if (backend == AttentionBackend::kNibble) return nibble;
#ifdef NIBBLE_FLASHINFER
  const absl::Status has_shape = CheckFlashInferShape(shape, caps);
  if (has_shape.ok()) {
    return CreateFlashInferAttention(shape, limits, caps, std::move(nibble),
                                     backend == AttentionBackend::kFlashInferDecode);
  }
#else
  const absl::Status has_shape = Unimplemented("attention: this build has no FlashInfer");
#endif
  if (backend == AttentionBackend::kAuto) return nibble;
  return has_shape;
}

}  // namespace nibble::kernels::cuda
