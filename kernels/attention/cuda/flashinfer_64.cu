// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/attention/cuda/flashinfer_instance.cuh"

namespace nibble::kernels::cuda::flashinfer_prefill {

template cudaError_t RunPrefill<64>(uint32_t tile, Params params, __nv_bfloat16* partial_values,
                                    float* partial_sums, cudaStream_t stream);

}  // namespace nibble::kernels::cuda::flashinfer_prefill
