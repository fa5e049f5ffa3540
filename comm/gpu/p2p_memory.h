// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Device memory that the ranks of a host write into directly: each allocates some, tells the others
// its handle (CUDA IPC; ranks of one process use the address as it is) and maps theirs.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "base/cuda/device.h"
#include "base/status.h"
#include "comm/communicator.h"
#include "comm/gpu/exported_memory.h"
#include "comm/gpu/p2p_link.h"

namespace nibble::comm {

// Move-only. What a rank has given to its own device and to copies has ended before it destroys it;
// peers may still write then, whether they live or not.
class P2pMemory {
 public:
  // Every rank calls, with the same bytes; all succeed or all fail, with the first rank's reason.
  // The memory is zero.
  static absl::StatusOr<P2pMemory> Create(Communicator* host, const gpu::DeviceCaps& caps,
                                          int64_t bytes);
  P2pMemory(P2pMemory&& other) noexcept { *this = std::move(other); }
  P2pMemory& operator=(P2pMemory&& other) noexcept;
  ~P2pMemory();

  // By rank, as this one's device sees it; its own too.
  const std::array<uint8_t*, kMaxP2pRanks>& of_rank() const { return of_rank_; }

 private:
  struct Handle;

  explicit P2pMemory(int device) : device_(device) {}
  absl::Status Allocate(int64_t bytes, std::span<const RankProcess> group);
  absl::Status DescribeOwn(const gpu::DeviceCaps& caps, Handle* own) const;
  absl::Status Map(int rank, const std::vector<Handle>& handles);

  int device_ = -1;
  ExportedMemory own_;
  std::array<uint8_t*, kMaxP2pRanks> of_rank_{};
  ImportedMemory imported_;
  std::vector<void*> opened_;  // to be closed
};

}  // namespace nibble::comm
