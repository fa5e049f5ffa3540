// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A rank's place in the generation at hand. The thread that computes joins and leaves; any other
// may abort at any moment, and finds either nothing or something that can be aborted.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>

#include "base/status.h"
#include "base/thread_pool.h"
#include "comm/communicator.h"
#include "comm/group.h"
#include "comm/stage_link.h"
#include "comm/stage_links.h"
#include "engine/exec/rank_protocol.h"

namespace nibble::engine {

class RankMembership {
 public:
  // What a rank has in a generation; both live until Leave.
  struct Joined {
    comm::Communicator* communicator = nullptr;  // of its stage
    comm::StageLink* link = nullptr;             // null with one stage
  };

  ~RankMembership() { Leave(); }

  // On the computing thread. Prepare leaves the generation before and gives the address for the
  // other ranks: what its group and its links tell theirs, joined.
  absl::StatusOr<std::string> Prepare(const PreparePayload& payload);
  absl::StatusOr<Joined> Connect(const ConnectPayload& payload, ThreadPool* pool);
  void Leave();
  // Prepared last.
  uint64_t generation() const { return generation_; }

  // From any thread: ends the waits of generations up to this one, now and later.
  void Abort(uint64_t generation, const std::string& reason);
  void AbortCurrent(const std::string& reason);

 private:
  absl::Status ConnectLinks(const ConnectPayload& payload, std::span<const std::string> addresses);
  absl::StatusOr<comm::Communicator*> ConnectGroup(const ConnectPayload& payload,
                                                   std::span<const std::string> addresses,
                                                   ThreadPool* pool);
  void AbortLocked(uint64_t generation, const std::string& reason);
  // What is there of generation_.
  void AbortPartsLocked(const std::string& reason);

  // The computing thread's:
  std::string group_id_;
  int stage_size_ = 1;
  int first_rank_ = 0;  // of this stage
  int size_ = 1;        // of all stages

  mutable std::mutex mutex_;
  // Guarded by mutex_; only the computing thread changes the first five:
  uint64_t generation_ = 0;
  std::unique_ptr<comm::GroupMember> member_;
  std::unique_ptr<comm::StageLinkMember> link_member_;  // null with one stage, as the link
  std::unique_ptr<comm::Communicator> communicator_;
  std::unique_ptr<comm::StageLink> link_;
  uint64_t aborted_generation_ = 0;  // this and all before
  std::string abort_reason_;
};

}  // namespace nibble::engine
