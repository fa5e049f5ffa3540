// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/attention/cuda/attention_mma.cuh"

namespace nibble::kernels::cuda {

MmaInstance MmaAttention256() { return mma::InstanceOf<256>(); }

}  // namespace nibble::kernels::cuda
