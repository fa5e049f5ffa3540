// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/attention/cuda/attention_mma.cuh"

namespace nibble::kernels::cuda {

MmaInstance MmaAttention64() { return mma::InstanceOf<64>(); }

}  // namespace nibble::kernels::cuda
