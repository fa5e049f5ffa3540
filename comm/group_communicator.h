// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The communicator of a formed group: which transport an operation takes.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/cpu_features.h"
#include "comm/communicator.h"
#include "comm/direct_exchange.h"
#include "comm/flash/flash.h"
#include "comm/transport.h"

namespace nibble::comm {

struct GroupLinks {
  std::unique_ptr<Transport> network;  // of all ranks
};

struct GroupSettings {
  AllReducePolicy policy;
  std::chrono::nanoseconds operation_timeout{std::chrono::seconds(60)};
  uint32_t first_operation = 0;  // where the counter begins that tells operations apart
};

class GroupCommunicator final : public Communicator {
 public:
  GroupCommunicator(GroupLinks links, const GroupSettings& settings, Isa isa);

  int rank() const override { return links_.network->rank(); }
  int size() const override { return links_.network->size(); }
  const AllReducePolicy& policy() const override { return policy_; }

  absl::Status AllReduce(const AllReduceArgs& args, ThreadPool* pool) override;
  absl::Status AllGather(const void* send, size_t bytes, void* recv) override;
  absl::Status Gather(const void* send, const size_t* bytes_of_rank, void* recv, int root) override;
  absl::Status Broadcast(void* data, size_t bytes, int root) override;
  absl::Status Barrier() override;
  void Abort(const std::string& reason) override;

  // The same by this choice instead of the policy's, for measuring.
  absl::Status AllReduceBy(const AllReduceChoice& choice, const AllReduceArgs& args,
                           ThreadPool* pool);
  void SetPolicy(AllReducePolicy policy) { policy_ = std::move(policy); }

 private:
  // Of a new operation; an error once the group is broken.
  absl::StatusOr<ExchangeArgs> Begin();
  // Remembers the first error.
  absl::Status End(absl::Status status);

  FlashAllReduce flash_;  // outlives links_, which may still carry what is in its memory
  GroupLinks links_;
  AllReducePolicy policy_;
  std::chrono::nanoseconds operation_timeout_;
  uint32_t operation_;
  absl::Status broken_;
};

}  // namespace nibble::comm
