// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/attention/cuda/attention_mma.cuh"

namespace nibble::kernels::cuda {

MmaInstance MmaAttention96() { return mma::InstanceOf<96>(); }

}  // namespace nibble::kernels::cuda
