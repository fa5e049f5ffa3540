// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#pragma once

#include <flashinfer/attention/prefill.cuh>

#include "kernels/attention/cuda/flashinfer_params.cuh"

namespace nibble::kernels::cuda::flashinfer_prefill {

template <uint32_t kHeadDim>
cudaError_t RunPrefill(uint32_t tile, Params params, __nv_bfloat16* partial_values,
                       float* partial_sums, cudaStream_t stream) {
  using Variant = flashinfer::DefaultAttention</*use_custom_mask=*/false,
                                               /*use_sliding_window=*/false,
                                               /*use_logits_soft_cap=*/false, /*use_alibi=*/false>;
  const auto run = [&]<uint32_t kTile>() {
    return flashinfer::BatchPrefillWithPagedKVCacheDispatched<
        /*SAME_KV_STRIDES=*/true, kTile, kHeadDim, kHeadDim, flashinfer::PosEncodingMode::kNone,
        /*USE_FP16_QK_REDUCTION=*/false, flashinfer::MaskMode::kCausal, Variant, Params>(
        params, partial_values, partial_sums, /*enable_pdl=*/false, stream);
  };
  switch (tile) {
    case 16:
      return run.template operator()<16>();
    case 64:
      return run.template operator()<64>();
    case 128:
      return run.template operator()<128>();
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace nibble::kernels::cuda::flashinfer_prefill
