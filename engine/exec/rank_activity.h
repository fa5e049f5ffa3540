// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the thread of a rank that computes is at, for the thread that answers pings: a driver that
// hears that nobody computes and nobody gets on knows that the ranks cannot reach each other.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>

#include "comm/communicator.h"
#include "comm/stage_link.h"
#include "engine/exec/rank_protocol.h"

namespace nibble::engine {

// Thread-safe.
class ActivityLog {
 public:
  void Joined(uint64_t generation);
  // kIdle or kComputing.
  void Enter(RankPhase phase);
  void BeginCollective(uint64_t bytes);
  void EndCollective() { Enter(RankPhase::kComputing); }
  // kReceiving or kSending.
  void BeginHandOff(RankPhase phase, uint64_t bytes);
  void EndSend();
  void EndReceive();
  RankActivity Now() const;

 private:
  mutable std::mutex mutex_;
  RankActivity now_;  // guarded by mutex_
};

// Notes every collective. Inner and log must outlive it.
class LoggedCommunicator final : public comm::Communicator {
 public:
  LoggedCommunicator(comm::Communicator* inner, ActivityLog* log) : inner_(inner), log_(log) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  const comm::AllReducePolicy& policy() const override { return inner_->policy(); }

  absl::Status AllReduce(const comm::AllReduceArgs& args, ThreadPool* pool) override;
  absl::Status AllGather(const void* send, size_t bytes, void* recv) override;
  absl::Status Gather(const void* send, const size_t* bytes_of_rank, void* recv, int root) override;
  absl::Status Broadcast(void* data, size_t bytes, int root) override;
  absl::Status Barrier() override;
  void Abort(const std::string& reason) override { inner_->Abort(reason); }

 private:
  template <typename Collective>
  absl::Status Logged(uint64_t bytes, const Collective& collective);

  comm::Communicator* const inner_;
  ActivityLog* const log_;
};

// Notes what goes to the next stage and comes from the previous one. Inner and log must outlive it.
class LoggedStageLink final : public comm::StageLink {
 public:
  LoggedStageLink(comm::StageLink* inner, ActivityLog* log) : inner_(inner), log_(log) {}

  absl::Status Send(const float* data, int64_t num_values) override;
  absl::Status Receive(float* data, int64_t num_values) override;
  void Abort(const std::string& reason) override { inner_->Abort(reason); }

 private:
  comm::StageLink* const inner_;
  ActivityLog* const log_;
};

}  // namespace nibble::engine
