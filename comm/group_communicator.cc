// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/group_communicator.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace nibble::comm {
namespace {

// The first rank of each host, and the number of ranks.
std::vector<int> FirstOfHosts(const std::vector<int>& node_of_rank) {
  std::vector<int> first;
  const int size = static_cast<int>(node_of_rank.size());
  for (int r = 0; r < size; ++r) {
    const auto at = static_cast<size_t>(r);
    if (r == 0 || node_of_rank[at] != node_of_rank[at - 1]) first.push_back(r);
  }
  first.push_back(size);
  return first;
}

}  // namespace

GroupCommunicator::GroupCommunicator(int rank, GroupLinks links, const GroupSettings& settings,
                                     Isa isa)
    : rank_(rank),
      first_rank_(settings.first_rank),
      first_of_host_(FirstOfHosts(links.node_of_rank)),
      all_reduce_(isa),
      links_(std::move(links)),
      policy_(settings.policy),
      operation_timeout_(settings.operation_timeout),
      operation_(settings.first_operation) {
  const auto next = std::upper_bound(first_of_host_.begin(), first_of_host_.end(), rank);
  host_ = static_cast<int>(next - first_of_host_.begin()) - 1;
  NIBBLE_CHECK_EQ(all_on_one_host(), num_hosts() == 1);
  if (links_.host != nullptr) {
    collectives_ = std::make_unique<ShmCollectives>(links_.host.get(), isa);
    host_transport_ = std::make_unique<ShmTransport>(links_.host.get());
  }
  if (all_on_one_host()) return;
  num_stripes_ = size();
  for (int h = 0; h < num_hosts(); ++h) {
    const auto at = static_cast<size_t>(h);
    num_stripes_ = std::min(num_stripes_, first_of_host_[at + 1] - first_of_host_[at]);
  }
  const int index = rank_ - first_on_host();
  if (index >= num_stripes_) return;
  std::vector<int> across(first_of_host_.begin(), first_of_host_.end() - 1);
  for (int& other : across) other += index;
  across_ = std::make_unique<SubsetTransport>(links_.network.get(), std::move(across));
}

absl::StatusOr<GroupCommunicator::Operation> GroupCommunicator::Begin() {
  if (!broken_.ok()) return broken_;
  // Tags are compared for equality alone, so the counter may wrap.
  return Operation{.tag = static_cast<uint64_t>(operation_++) << 32,
                   .deadline = Deadline::After(operation_timeout_)};
}

absl::Status GroupCommunicator::End(absl::Status status) {
  if (!status.ok() && broken_.ok()) {
    broken_ = status;
    Abort(fmt::format("rank {}: {}", first_rank_ + rank_, std::string(status.message())));
    // This is the thread that uses the network: it closes the connections now, or ranks of other
    // hosts would wait for this one until their timeout.
    if (links_.network != nullptr) links_.network->Progress();
  }
  return status;
}

void GroupCommunicator::Abort(const std::string& reason) {
  if (links_.host != nullptr) links_.host->Abort(reason);
  if (links_.network != nullptr) links_.network->Abort(reason);
}

absl::Status GroupCommunicator::AllReduce(const AllReduceArgs& args, ThreadPool* pool) {
  // Exact sums have the same bits by both algorithms, so they take the size's.
  AllReduceChoice choice = policy_.For(args.num_rows * args.row_size * 2);
  if (args.exact) choice.codec = {.bits = args.is_bf16 && !all_on_one_host() ? 16 : 32};
  return AllReduceBy(choice, args, pool);
}

absl::Status GroupCommunicator::AllReduceBy(const AllReduceChoice& choice,
                                            const AllReduceArgs& args, ThreadPool* pool) {
  NIBBLE_ASSIGN_OR_RETURN(const Operation operation, Begin());
  return End(RunAllReduce(choice, args, operation, pool));
}

absl::Status GroupCommunicator::RunAllReduce(const AllReduceChoice& choice,
                                             const AllReduceArgs& args, const Operation& operation,
                                             ThreadPool* pool) {
  const int64_t num_values = args.num_rows * args.row_size;
  if (size() == 1 || num_values == 0) return absl::OkStatus();
  const bool is_integer = choice.codec.is_integer();
  if (all_on_one_host() && choice.codec.bits == 32) {
    return collectives_->AllReduce(args.data, num_values, choice.algorithm, pool,
                                   operation.deadline);
  }
  // What is no integer code has no groups: one long row leaves none to be filled up.
  const RowGroups groups = {.row_size = is_integer ? args.row_size : num_values,
                            .group_size = choice.codec.group_size};
  const FlashArgs flash = {.data = args.data,
                           .groups = groups,
                           .range = {0, (is_integer ? args.num_rows : 1) * groups.groups_per_row()},
                           .codec = choice.codec,
                           .algorithm = choice.algorithm,
                           .tag = operation.tag,
                           .deadline = operation.deadline,
                           .pool = pool};
  if (all_on_one_host()) return all_reduce_.Run(flash, {.across = host_transport_.get()});
  return all_reduce_.Run(
      flash, {.host = host_transport_.get(), .across = across_.get(), .num_stripes = num_stripes_});
}

absl::Status GroupCommunicator::AllGather(const void* send, size_t bytes, void* recv) {
  NIBBLE_ASSIGN_OR_RETURN(const Operation operation, Begin());
  if (bytes == 0) return absl::OkStatus();
  return End(RunAllGather(operation, send, bytes, static_cast<std::byte*>(recv)));
}

absl::Status GroupCommunicator::Gather(const void* send, const size_t* bytes_of_rank, void* recv,
                                       int root) {
  NIBBLE_ASSIGN_OR_RETURN(const Operation operation, Begin());
  std::vector<size_t> offsets(static_cast<size_t>(size()) + 1);
  for (size_t i = 1; i < offsets.size(); ++i) offsets[i] = offsets[i - 1] + bytes_of_rank[i - 1];
  return End(RunGather(operation, send, offsets, static_cast<std::byte*>(recv), root));
}

absl::Status GroupCommunicator::Broadcast(void* data, size_t bytes, int root) {
  NIBBLE_ASSIGN_OR_RETURN(const Operation operation, Begin());
  if (bytes == 0) return absl::OkStatus();
  return End(RunBroadcast(operation, data, bytes, root));
}

absl::Status GroupCommunicator::Barrier() {
  NIBBLE_ASSIGN_OR_RETURN(const Operation operation, Begin());
  return End(RunBarrier(operation));
}

std::vector<int> GroupCommunicator::SpeakersWith(int root) const {
  std::vector<int> speakers(first_of_host_.begin(), first_of_host_.end() - 1);
  const auto next = std::upper_bound(speakers.begin(), speakers.end(), root);
  *(next - 1) = root;
  return speakers;
}

template <typename Exchange>
absl::Status GroupCommunicator::AmongSpeakers(const Operation& operation,
                                              const std::vector<int>& speakers,
                                              const Exchange& exchange) {
  if (all_on_one_host() || speakers[static_cast<size_t>(host_)] != rank_) return absl::OkStatus();
  SubsetTransport transport(links_.network.get(), speakers);
  return exchange(
      ExchangeArgs{.transport = &transport, .tag = operation.tag, .deadline = operation.deadline});
}

absl::Status GroupCommunicator::GatherOnHost(const Operation& operation, const void* send,
                                             const std::vector<size_t>& offsets, std::byte* recv,
                                             int speaker) {
  const auto first = static_cast<size_t>(first_on_host());
  if (links_.host == nullptr) {
    const size_t bytes = offsets[first + 1] - offsets[first];
    if (bytes > 0 && recv != send) std::memcpy(recv, send, bytes);
    return absl::OkStatus();
  }
  std::vector<size_t> bytes_of_rank;
  for (size_t r = first; r < first + static_cast<size_t>(links_.host->size()); ++r) {
    bytes_of_rank.push_back(offsets[r + 1] - offsets[r]);
  }
  return collectives_->Gather(send, bytes_of_rank.data(), recv, speaker - first_on_host(),
                              operation.deadline);
}

absl::Status GroupCommunicator::BroadcastOnHost(const Operation& operation, void* data,
                                                size_t bytes, int speaker) {
  if (links_.host == nullptr) return absl::OkStatus();
  return collectives_->Broadcast(data, bytes, speaker - first_on_host(), operation.deadline);
}

absl::Status GroupCommunicator::BarrierOnHost(const Operation& operation) {
  if (links_.host == nullptr) return absl::OkStatus();
  return collectives_->Barrier(operation.deadline);
}

std::vector<size_t> GroupCommunicator::HostOffsets(const std::vector<size_t>& offsets) const {
  std::vector<size_t> of_hosts;
  for (const int first : first_of_host_) of_hosts.push_back(offsets[static_cast<size_t>(first)]);
  return of_hosts;
}

absl::Status GroupCommunicator::RunAllGather(const Operation& operation, const void* send,
                                             size_t bytes, std::byte* recv) {
  if (all_on_one_host() && links_.host != nullptr) {
    return collectives_->AllGather(send, bytes, recv, operation.deadline);
  }
  std::vector<size_t> offsets(static_cast<size_t>(size()) + 1);
  for (size_t i = 1; i < offsets.size(); ++i) offsets[i] = offsets[i - 1] + bytes;
  const int speaker = first_on_host();
  std::byte* const of_host = recv + offsets[static_cast<size_t>(speaker)];
  NIBBLE_RETURN_IF_ERROR(GatherOnHost(operation, send, offsets, of_host, speaker));
  NIBBLE_RETURN_IF_ERROR(
      AmongSpeakers(operation, SpeakersWith(speaker), [&](const ExchangeArgs& exchange) {
        return AllGatherInPlace(exchange, recv, HostOffsets(offsets));
      }));
  return BroadcastOnHost(operation, recv, offsets.back(), speaker);
}

absl::Status GroupCommunicator::RunGather(const Operation& operation, const void* send,
                                          const std::vector<size_t>& offsets, std::byte* recv,
                                          int root) {
  const std::vector<int> speakers = SpeakersWith(root);
  const int speaker = speakers[static_cast<size_t>(host_)];
  const std::vector<size_t> of_hosts = HostOffsets(offsets);
  const size_t begin = of_hosts[static_cast<size_t>(host_)];
  std::vector<std::byte> aside;
  std::byte* of_host = nullptr;
  if (rank_ == root) {
    of_host = recv + begin;
  } else if (rank_ == speaker) {
    aside.resize(of_hosts[static_cast<size_t>(host_) + 1] - begin);
    of_host = aside.data();
  }
  NIBBLE_RETURN_IF_ERROR(GatherOnHost(operation, send, offsets, of_host, speaker));
  return AmongSpeakers(operation, speakers, [&](const ExchangeArgs& exchange) {
    const auto root_at = std::find(speakers.begin(), speakers.end(), root);
    return GatherTo(exchange, of_host, recv, of_hosts,
                    static_cast<int>(root_at - speakers.begin()));
  });
}

absl::Status GroupCommunicator::RunBroadcast(const Operation& operation, void* data, size_t bytes,
                                             int root) {
  const std::vector<int> speakers = SpeakersWith(root);
  NIBBLE_RETURN_IF_ERROR(AmongSpeakers(operation, speakers, [&](const ExchangeArgs& exchange) {
    const auto root_at = std::find(speakers.begin(), speakers.end(), root);
    return BroadcastFrom(exchange, data, bytes, static_cast<int>(root_at - speakers.begin()));
  }));
  return BroadcastOnHost(operation, data, bytes, speakers[static_cast<size_t>(host_)]);
}

absl::Status GroupCommunicator::RunBarrier(const Operation& operation) {
  NIBBLE_RETURN_IF_ERROR(BarrierOnHost(operation));
  NIBBLE_RETURN_IF_ERROR(
      AmongSpeakers(operation, SpeakersWith(first_on_host()),
                    [&](const ExchangeArgs& exchange) { return WaitForAll(exchange); }));
  // Nobody of a host leaves before its speaker has heard of the other hosts.
  return all_on_one_host() ? absl::OkStatus() : BarrierOnHost(operation);
}

}  // namespace nibble::comm
