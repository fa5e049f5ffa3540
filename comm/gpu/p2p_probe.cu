// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/cuda/launch.h"
#include "base/cuda/memory.cuh"
#include "comm/gpu/all_reduce_kernel.cuh"
#include "comm/gpu/p2p_kernels.h"

namespace nibble::comm {
namespace {

constexpr int kThreads = 32;

struct ProbeTokens {
  uint32_t to[kMaxP2pRanks];
};

__global__ void __launch_bounds__(kThreads)
    ProbeWriteKernel(const __grid_constant__ P2pLink link, ProbeTokens tokens) {
  const int peer = static_cast<int>(threadIdx.x);
  if (peer >= link.size) return;
  P2pFlags* const flags = FlagsOf(link, peer);
  uint32_t* const word = peer == link.rank ? &flags->marker : &flags->probe[link.rank];
  gpu::StoreReleaseSystem(word, tokens.to[peer]);
}

__global__ void __launch_bounds__(kThreads)
    ProbeReadKernel(const __grid_constant__ P2pLink link, uint32_t* found) {
  const int peer = static_cast<int>(threadIdx.x);
  if (peer >= link.size) return;
  found[peer] = gpu::LoadAcquireSystem(&FlagsOf(link, link.rank)->probe[peer]);
  found[kMaxP2pRanks + peer] = gpu::LoadAcquireSystem(&FlagsOf(link, peer)->marker);
}

}  // namespace

uint32_t ProbeToken(uint32_t nonce, int from, int to) {
  uint32_t token = nonce ^ static_cast<uint32_t>(from * kMaxP2pRanks + to + 1) * 0x9e3779b9U;
  token ^= token >> 15;
  return token * 0x85ebca6bU;
}

absl::Status LaunchP2pProbeWrite(const P2pLink& link, uint32_t nonce, cudaStream_t stream) {
  ProbeTokens tokens{};
  for (int to = 0; to < link.size; ++to) tokens.to[to] = ProbeToken(nonce, link.rank, to);
  return gpu::Launch(ProbeWriteKernel, {.block = {kThreads}, .stream = stream}, link, tokens);
}

absl::Status LaunchP2pProbeRead(const P2pLink& link, uint32_t* found, cudaStream_t stream) {
  return gpu::Launch(ProbeReadKernel, {.block = {kThreads}, .stream = stream}, link, found);
}

}  // namespace nibble::comm
