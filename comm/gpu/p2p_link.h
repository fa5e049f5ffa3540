// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What kernels are told about the ranks' memory, by value, and what lies in it. README.md draws it.
#pragma once

#include <cstdint>

namespace nibble::comm {

inline constexpr int kMaxP2pRanks = 8;
inline constexpr int kMaxP2pBlocks = 128;

// At the beginning of each rank's shared memory; peers write, the rank itself reads. A flag says in
// which operation its writer has come so far, and is never reset.
struct alignas(128) P2pFlags {
  uint32_t pieces[kMaxP2pBlocks][kMaxP2pRanks];  // by block and writer: its codes are here
  uint32_t sums[kMaxP2pBlocks][kMaxP2pRanks];    // the same of its sums' codes
  uint32_t aborted[kMaxP2pRanks];                // by writer: not 0 when it has given up
  uint32_t probe[kMaxP2pRanks];                  // by writer: what it was told to write
  uint32_t marker;                               // the rank's own, which peers read
};

// A rank's own words in device memory, zero at first but for the epoch.
struct P2pProgress {
  uint32_t epoch;        // of the next operation
  uint32_t blocks_done;  // of the operation under way
  uint32_t broken;       // a P2pFault that ends all operations
};

// What a rank's kernels and its host tell each other, in pinned memory.
struct P2pHostWords {
  uint32_t aborted;  // the host's: not 0 when kernels shall end
  uint32_t fault;    // the kernels': the first P2pFault, 0 for none
};

enum class P2pFaultKind : uint32_t {
  kTimeout = 1,      // `rank` did not come within the time
  kPeerAborted = 2,  // `rank` has given up
  kAborted = 3,      // this rank's host wanted it
};
constexpr uint32_t MakeP2pFault(P2pFaultKind kind, int rank) {
  return static_cast<uint32_t>(kind) << 8 | static_cast<uint32_t>(rank);
}
constexpr P2pFaultKind FaultKind(uint32_t fault) { return static_cast<P2pFaultKind>(fault >> 8); }
constexpr int FaultRank(uint32_t fault) { return static_cast<int>(fault & 0xffU); }

struct P2pLink {
  int rank = 0;
  int size = 1;
  uint8_t* memory[kMaxP2pRanks] = {};  // each rank's, as this one's device sees it
  // Bytes of one region: what peers put there in one of the two steps. The memory is P2pFlags and
  // then the regions of `num_buffers` operations, two each.
  int64_t region_bytes = 0;
  // 2, so that a rank may begin an operation while another still reads what the one before left. A
  // power of two, which the epoch's wrapping keeps in turn.
  uint32_t num_buffers = 2;
  int64_t timeout_clocks = 0;
  P2pProgress* progress = nullptr;
  P2pHostWords* host = nullptr;
};

constexpr int64_t P2pMemoryBytes(int64_t region_bytes, uint32_t num_buffers) {
  return static_cast<int64_t>(sizeof(P2pFlags)) +
         2 * static_cast<int64_t>(num_buffers) * region_bytes;
}

}  // namespace nibble::comm
