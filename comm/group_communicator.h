// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The communicator of a formed group. Ranks of one host meet in shared memory, hosts over the
// network; a collective of several ranks on several hosts is first done inside each host, then
// among one rank of each, then inside again. At no time is more than one of the two waited for, so
// neither has to be moved along while the other is.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/cpu_features.h"
#include "comm/communicator.h"
#include "comm/direct_exchange.h"
#include "comm/flash/hierarchy.h"
#include "comm/shm/collectives.h"
#include "comm/shm/segment.h"
#include "comm/shm/shm_transport.h"
#include "comm/transport.h"

namespace nibble::comm {

// What connects a rank to the others.
struct GroupLinks {
  std::vector<int> node_of_rank;       // [size], rising
  std::unique_ptr<ShmSegment> host;    // of this host's ranks, connected; null when there is one
  std::unique_ptr<Transport> network;  // of all ranks; null when all are on one host
};

struct GroupSettings {
  AllReducePolicy policy;
  std::chrono::nanoseconds operation_timeout{std::chrono::seconds(60)};
  uint32_t first_operation = 0;  // where the counter begins that tells operations apart
  int first_rank = 0;            // what errors call rank 0
};

class GroupCommunicator final : public Communicator {
 public:
  // `rank` REQUIRES to be the one that links are of.
  GroupCommunicator(int rank, GroupLinks links, const GroupSettings& settings, Isa isa);

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(links_.node_of_rank.size()); }
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
  int num_hosts() const { return static_cast<int>(first_of_host_.size()) - 1; }
  // Of all ranks, for benchmarks: the network, or shared memory's. The latter's collectives; null
  // when this rank is alone on its host.
  Transport* transport() const {
    return links_.network != nullptr ? links_.network.get() : host_transport_.get();
  }
  ShmCollectives* collectives() const { return collectives_.get(); }

 private:
  // An operation under way.
  struct Operation {
    uint64_t tag;
    Deadline deadline;
  };
  absl::StatusOr<Operation> Begin();
  // Remembers the first error, and lets this host's peers know.
  absl::Status End(absl::Status status);

  bool all_on_one_host() const { return links_.network == nullptr; }
  int first_on_host() const { return first_of_host_[static_cast<size_t>(host_)]; }

  // The one rank of each host that speaks for it to the others: `root` for its own host, the first
  // one elsewhere.
  std::vector<int> SpeakersWith(int root) const;
  // Runs exchange(args of the speakers' transport, hosts' order) when this rank is one of them.
  template <typename Exchange>
  absl::Status AmongSpeakers(const Operation& operation, const std::vector<int>& speakers,
                             const Exchange& exchange);
  // The rank given speaks for this host; `offsets` [size() + 1] of all ranks' parts.
  absl::Status GatherOnHost(const Operation& operation, const void* send,
                            const std::vector<size_t>& offsets, std::byte* recv, int speaker);
  absl::Status BroadcastOnHost(const Operation& operation, void* data, size_t bytes, int speaker);
  absl::Status BarrierOnHost(const Operation& operation);
  // Of the hosts' parts: [num_hosts + 1].
  std::vector<size_t> HostOffsets(const std::vector<size_t>& offsets) const;

  absl::Status RunAllReduce(const AllReduceChoice& choice, const AllReduceArgs& args,
                            const Operation& operation, ThreadPool* pool);
  absl::Status RunAllGather(const Operation& operation, const void* send, size_t bytes,
                            std::byte* recv);
  absl::Status RunGather(const Operation& operation, const void* send,
                         const std::vector<size_t>& offsets, std::byte* recv, int root);
  absl::Status RunBroadcast(const Operation& operation, void* data, size_t bytes, int root);
  absl::Status RunBarrier(const Operation& operation);

  const int rank_;
  const int first_rank_;
  int host_ = 0;                      // which of the hosts, counted from 0
  std::vector<int> first_of_host_;    // [num_hosts + 1], a rank
  HierarchicalAllReduce all_reduce_;  // outlives links_, which may carry what is in its memory
  GroupLinks links_;
  std::unique_ptr<ShmCollectives> collectives_;   // of links_.host
  std::unique_ptr<ShmTransport> host_transport_;  // of links_.host
  std::unique_ptr<SubsetTransport> across_;       // ranks with this one's index on their hosts
  int num_stripes_ = 1;
  AllReducePolicy policy_;
  std::chrono::nanoseconds operation_timeout_;
  uint32_t operation_;
  absl::Status broken_;
};

}  // namespace nibble::comm
