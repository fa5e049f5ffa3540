// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/cuda/shared_memory.cuh"
#include "comm/gpu/p2p_job.cuh"
#include "comm/gpu/p2p_kernels.h"

namespace nibble::comm {
namespace {

constexpr int kMaxThreads = 256;

template <int kBits, bool kTwoShot>
__global__ void __launch_bounds__(kMaxThreads)
    AllReduceKernel(const __grid_constant__ P2pLink link, const __grid_constant__ P2pJob job) {
  NoEpilogue::Shared none;
  RunP2pAllReduce<kBits, kTwoShot>(link, job, NoEpilogue(), NoStall(), gpu::SharedAs<P2pShared>(),
                                   &none);
}

}  // namespace

absl::Status LaunchP2pAllReduce(const P2pLink& link, const P2pPlan& plan, const CodecDesc& codec,
                                const cuda::DeviceRows& rows, cudaStream_t stream) {
  return cuda::DispatchBits(codec.bits, [&](auto bits) {
    const auto kernel =
        plan.two_shot ? AllReduceKernel<bits(), true> : AllReduceKernel<bits(), false>;
    return ForP2pParts(plan, codec, rows, [&](const P2pJob& job, unsigned grid) {
      return gpu::Launch(kernel,
                         {.grid = {grid},
                          .block = {static_cast<unsigned>(plan.num_threads)},
                          .shared_bytes = sizeof(P2pShared),
                          .stream = stream},
                         link, job);
    });
  });
}

}  // namespace nibble::comm
