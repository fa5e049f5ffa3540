// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The types that FlashInfer's paged prefill is instantiated with: causal, no window, no cap, no
// position encoding of its own.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include <flashinfer/attention/default_prefill_params.cuh>
#include <flashinfer/attention/mask.cuh>
#include <flashinfer/attention/variants.cuh>
#include <flashinfer/page.cuh>
#include <flashinfer/pos_enc.cuh>

namespace nibble::kernels::cuda::flashinfer_prefill {

using Params =
    flashinfer::BatchPrefillPagedParams<__nv_bfloat16, __nv_bfloat16, __nv_bfloat16, int32_t>;

// One head size, each in a source of its own. `tile` is cta_tile_q of the plan.
template <uint32_t kHeadDim>
cudaError_t RunPrefill(uint32_t tile, Params params, __nv_bfloat16* partial_values,
                       float* partial_sums, cudaStream_t stream);

}  // namespace nibble::kernels::cuda::flashinfer_prefill
