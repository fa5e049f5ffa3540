// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A rank's place in the generation at hand. The thread that computes joins and leaves; any other
// may abort at any moment, and finds either nothing or something that can be aborted.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "base/status.h"
#include "base/thread_pool.h"
#include "comm/communicator.h"
#include "comm/group.h"
#include "engine/exec/rank_protocol.h"

namespace nibble::engine {

class RankMembership {
 public:
  ~RankMembership() { Leave(); }

  // On the computing thread. Prepare leaves the generation before and gives the address for the
  // other ranks; Connect gives the communicator, which lives until Leave.
  absl::StatusOr<std::string> Prepare(const PreparePayload& payload);
  absl::StatusOr<comm::Communicator*> Connect(const ConnectPayload& payload, ThreadPool* pool);
  void Leave();
  // Prepared last.
  uint64_t generation() const { return generation_; }

  // From any thread: ends the waits of generations up to this one, now and later.
  void Abort(uint64_t generation, const std::string& reason);
  void AbortCurrent(const std::string& reason);

 private:
  void AbortLocked(uint64_t generation, const std::string& reason);

  std::string group_id_;  // the computing thread's

  mutable std::mutex mutex_;
  // Guarded by mutex_; only the computing thread changes the first three:
  uint64_t generation_ = 0;
  std::unique_ptr<comm::GroupMember> member_;
  std::unique_ptr<comm::Communicator> communicator_;
  uint64_t aborted_generation_ = 0;  // this and all before
  std::string abort_reason_;
};

}  // namespace nibble::engine
