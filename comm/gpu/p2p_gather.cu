// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <algorithm>

#include "base/cuda/launch.h"
#include "base/cuda/shared_memory.cuh"
#include "comm/gpu/all_reduce_kernel.cuh"
#include "comm/gpu/p2p_kernels.h"

namespace nibble::comm {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kWord = 16;

// A part of everybody's bytes.
struct GatherJob {
  const uint8_t* send = nullptr;
  uint8_t* recv = nullptr;
  int64_t bytes = 0;
  int64_t recv_stride = 0;  // from one rank's bytes to the next one's
  int64_t slot_bytes = 0;
};

// This block's share, the same on all ranks.
template <typename T>
__device__ void CopyShare(uint8_t* to, const uint8_t* from, int64_t bytes) {
  const int64_t count = bytes / static_cast<int64_t>(sizeof(T));
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    reinterpret_cast<T*>(to)[i] = reinterpret_cast<const T*>(from)[i];
  }
}

// T: uint4 or uint8_t.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    GatherKernel(const __grid_constant__ P2pLink link, const __grid_constant__ GatherJob job) {
  P2pShared* const shared = gpu::SharedAs<P2pShared>();
  if (!P2pBegin(link, shared)) return;
  P2pFlags* const own = FlagsOf(link, link.rank);
  for (int i = 1; i < link.size; ++i) {
    const int peer = (link.rank + i) % link.size;
    CopyShare<T>(RegionOf(link, peer, shared->epoch, 0) + link.rank * job.slot_bytes, job.send,
                 job.bytes);
  }
  P2pSignal(link, own->pieces, shared);
  CopyShare<T>(job.recv + link.rank * job.recv_stride, job.send, job.bytes);
  if (!P2pWait(link, own->pieces, shared)) return;
  for (int i = 1; i < link.size; ++i) {
    const int peer = (link.rank + i) % link.size;
    CopyShare<T>(job.recv + peer * job.recv_stride,
                 RegionOf(link, link.rank, shared->epoch, 0) + peer * job.slot_bytes, job.bytes);
  }
  P2pEnd(link, shared);
}

}  // namespace

absl::Status LaunchP2pAllGather(const P2pLink& link, const void* send, int64_t bytes, void* recv,
                                int max_blocks, cudaStream_t stream) {
  const int64_t slot_bytes = link.region_bytes / link.size / kWord * kWord;
  const bool in_words = bytes % kWord == 0;  // else what is received is not aligned
  const auto kernel = in_words ? GatherKernel<uint4> : GatherKernel<uint8_t>;
  for (int64_t done = 0; done < bytes; done += slot_bytes) {
    const GatherJob job = {.send = static_cast<const uint8_t*>(send) + done,
                           .recv = static_cast<uint8_t*>(recv) + done,
                           .bytes = std::min(slot_bytes, bytes - done),
                           .recv_stride = bytes,
                           .slot_bytes = slot_bytes};
    const int64_t blocks = (job.bytes / kWord + kThreads - 1) / kThreads;
    const unsigned grid = static_cast<unsigned>(std::clamp<int64_t>(blocks, 1, max_blocks));
    NIBBLE_RETURN_IF_ERROR(gpu::Launch(
        kernel,
        {.grid = {grid}, .block = {kThreads}, .shared_bytes = sizeof(P2pShared), .stream = stream},
        link, job));
  }
  return absl::OkStatus();
}

}  // namespace nibble::comm
