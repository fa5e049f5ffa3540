// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/exec/rank_activity.h"

namespace nibble::engine {

void ActivityLog::Joined(uint64_t generation) {
  const std::lock_guard lock(mutex_);
  now_.generation = generation;
  now_.sent = now_.received = 0;
  ++now_.changes;
}

void ActivityLog::Enter(RankPhase phase) {
  const std::lock_guard lock(mutex_);
  now_.phase = phase;
  now_.bytes = 0;
  ++now_.changes;
}

void ActivityLog::BeginCollective(uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  now_.phase = RankPhase::kCollective;
  now_.bytes = bytes;
  ++now_.operation;
  ++now_.changes;
}

void ActivityLog::BeginHandOff(RankPhase phase, uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  now_.phase = phase;
  now_.bytes = bytes;
  ++now_.changes;
}

void ActivityLog::EndSend() {
  const std::lock_guard lock(mutex_);
  now_.phase = RankPhase::kComputing;
  now_.bytes = 0;
  ++now_.sent;
  ++now_.changes;
}

void ActivityLog::EndReceive() {
  const std::lock_guard lock(mutex_);
  now_.phase = RankPhase::kComputing;
  now_.bytes = 0;
  ++now_.received;
  ++now_.changes;
}

RankActivity ActivityLog::Now() const {
  const std::lock_guard lock(mutex_);
  return now_;
}

template <typename Collective>
absl::Status LoggedCommunicator::Logged(uint64_t bytes, const Collective& collective) {
  log_->BeginCollective(bytes);
  const absl::Status status = collective();
  log_->EndCollective();
  return status;
}

absl::Status LoggedCommunicator::AllReduce(const comm::AllReduceArgs& args, ThreadPool* pool) {
  return Logged(static_cast<uint64_t>(args.num_rows * args.row_size) * sizeof(float),
                [&] { return inner_->AllReduce(args, pool); });
}

absl::Status LoggedCommunicator::AllGather(const void* send, size_t bytes, void* recv) {
  return Logged(bytes * static_cast<size_t>(size()),
                [&] { return inner_->AllGather(send, bytes, recv); });
}

absl::Status LoggedCommunicator::Gather(const void* send, const size_t* bytes_of_rank, void* recv,
                                        int root) {
  uint64_t bytes = 0;
  for (int r = 0; r < size(); ++r) bytes += bytes_of_rank[r];
  return Logged(bytes, [&] { return inner_->Gather(send, bytes_of_rank, recv, root); });
}

absl::Status LoggedCommunicator::Broadcast(void* data, size_t bytes, int root) {
  return Logged(bytes, [&] { return inner_->Broadcast(data, bytes, root); });
}

absl::Status LoggedCommunicator::Barrier() {
  return Logged(0, [&] { return inner_->Barrier(); });
}

absl::Status LoggedStageLink::Send(const float* data, int64_t num_values) {
  log_->BeginHandOff(RankPhase::kSending, static_cast<uint64_t>(num_values) * sizeof(float));
  const absl::Status status = inner_->Send(data, num_values);
  log_->EndSend();
  return status;
}

absl::Status LoggedStageLink::Receive(float* data, int64_t num_values) {
  log_->BeginHandOff(RankPhase::kReceiving, static_cast<uint64_t>(num_values) * sizeof(float));
  const absl::Status status = inner_->Receive(data, num_values);
  log_->EndReceive();
  return status;
}

}  // namespace nibble::engine
