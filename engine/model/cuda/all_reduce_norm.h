// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The end of attention and of the feed-forward on several ranks: the delta is summed, added to the
// residual stream, normed and quantized. Where ranks reach each other's memory that is one kernel,
// in which the block that has collected a row's sum goes on with it; else two.
#pragma once

#include <cuda_runtime.h>

#include "base/status.h"
#include "comm/gpu/device_communicator.h"
#include "kernels/norm/cuda/rms_norm.h"

namespace nibble::engine {

// AllReduce(delta) and RmsNorm(norm), with the same bits. REQUIRES norm.delta to be delta's memory,
// rows and type. Every rank calls with the same shapes.
absl::Status AllReduceNorm(comm::DeviceCommunicator* communicator,
                           const comm::DeviceAllReduceArgs& delta,
                           const kernels::cuda::RmsNormArgs& norm, cudaStream_t stream);
// Whether AllReduceNorm() is one kernel for this sum.
bool IsAllReduceNormFused(comm::DeviceCommunicator* communicator,
                          const comm::DeviceAllReduceArgs& delta);

}  // namespace nibble::engine
