// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Launches of the kernels that reach into peers' memory. Every rank launches the same.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/status.h"
#include "comm/codec/cuda/codec.h"
#include "comm/gpu/p2p_link.h"
#include "comm/gpu/p2p_plan.h"

namespace nibble::comm {

// Sums rows in place, by the plan of this codec.
absl::Status LaunchP2pAllReduce(const P2pLink& link, const P2pPlan& plan, const CodecDesc& codec,
                                const cuda::DeviceRows& rows, cudaStream_t stream);

// recv [size, bytes] gets every rank's send [bytes].
absl::Status LaunchP2pAllGather(const P2pLink& link, const void* send, int64_t bytes, void* recv,
                                int max_blocks, cudaStream_t stream);

// What rank `from` writes to rank `to`; to == from: what it shows to everybody.
uint32_t ProbeToken(uint32_t nonce, int from, int to);
// Writes tokens to all peers, and this rank's own marker.
absl::Status LaunchP2pProbeWrite(const P2pLink& link, uint32_t nonce, cudaStream_t stream);
// found[0..size): what the peers wrote here; found[kMaxP2pRanks..): what is read of their markers.
absl::Status LaunchP2pProbeRead(const P2pLink& link, uint32_t* found, cudaStream_t stream);

}  // namespace nibble::comm
