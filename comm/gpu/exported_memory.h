// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Device memory that this process lets others map. What frees such memory must know that nobody has
// it mapped any more, and a rank that is gone or hangs cannot be asked: it is kept as long as the
// process, and used again only where all who have mapped it say that they no longer do.
//
//   ranks tell each other OfThisProcess(); then
//   NIBBLE_ASSIGN_OR_RETURN(ExportedMemory memory, ExportedMemory::Take(device, bytes, all_ranks));
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"

namespace nibble::comm {

// A process that has ranks, as it tells the others.
struct RankProcess {
  uint64_t id = 0;        // random: ranks with equal ones are in one process
  int64_t num_users = 0;  // of others' memory: ImportedMemory that there is
};
RankProcess OfThisProcess();

// While there is one, memory of other ranks is used here. Move-only.
class ImportedMemory {
 public:
  ImportedMemory() = default;
  static ImportedMemory Begin();
  ImportedMemory(ImportedMemory&& other) noexcept;
  ImportedMemory& operator=(ImportedMemory&& other) noexcept;
  ~ImportedMemory();
  // It could not be unmapped: this process counts as a user for ever.
  void KeepForEver() { counts_ = false; }

 private:
  bool counts_ = false;
};

// Move-only; given back, not freed, at the end.
class ExportedMemory {
 public:
  // The most that a device of this process has for others in all, with what cannot be used again.
  static constexpr int64_t kMaxBytes = int64_t{1} << 30;

  ExportedMemory() = default;
  // `bytes` of the calling thread's current device, which is `device`, for the processes of `group`
  // to map, which said so after the last memory they were given ended. RESOURCE_EXHAUSTED.
  static absl::StatusOr<ExportedMemory> Take(int device, size_t bytes,
                                             std::span<const RankProcess> group);
  ExportedMemory(ExportedMemory&& other) noexcept { *this = std::move(other); }
  ExportedMemory& operator=(ExportedMemory&& other) noexcept;
  ~ExportedMemory();

  uint8_t* data() const;
  size_t size() const;  // bytes; at least what was wanted

 private:
  struct Region;
  struct Pool;
  static Pool& ProcessPool();

  Region* region_ = nullptr;  // the pool's
};

}  // namespace nibble::comm
