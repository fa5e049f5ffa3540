// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/group_communicator.h"

#include <cstring>
#include <utility>

namespace nibble::comm {

GroupCommunicator::GroupCommunicator(GroupLinks links, const GroupSettings& settings, Isa isa)
    : flash_(isa),
      links_(std::move(links)),
      policy_(settings.policy),
      operation_timeout_(settings.operation_timeout),
      operation_(settings.first_operation) {}

absl::StatusOr<ExchangeArgs> GroupCommunicator::Begin() {
  if (!broken_.ok()) return broken_;
  // Tags are compared for equality alone, so the counter may wrap.
  return ExchangeArgs{.transport = links_.network.get(),
                      .tag = static_cast<uint64_t>(operation_++) << 32,
                      .deadline = Deadline::After(operation_timeout_)};
}

absl::Status GroupCommunicator::End(absl::Status status) {
  if (!status.ok() && broken_.ok()) broken_ = status;
  return status;
}

absl::Status GroupCommunicator::AllReduce(const AllReduceArgs& args, ThreadPool* pool) {
  // Sums in float32 have the same bits by both algorithms, so `exact` may take the policy's.
  AllReduceChoice choice = policy_.For(args.num_rows * args.row_size * 2);
  if (args.exact) choice.codec = CodecDesc{};
  return AllReduceBy(choice, args, pool);
}

absl::Status GroupCommunicator::AllReduceBy(const AllReduceChoice& choice,
                                            const AllReduceArgs& args, ThreadPool* pool) {
  NIBBLE_ASSIGN_OR_RETURN(const ExchangeArgs exchange, Begin());
  // Without groups' parameters a value's code does not depend on its neighbours: one long row has
  // no groups that are filled up.
  const int64_t row_size =
      choice.codec.is_integer() ? args.row_size : args.num_rows * args.row_size;
  const RowGroups groups = {.row_size = row_size, .group_size = choice.codec.group_size};
  const int64_t num_rows = choice.codec.is_integer() ? args.num_rows : 1;
  return End(flash_.Run({.data = args.data,
                         .groups = groups,
                         .range = {0, num_rows * groups.groups_per_row()},
                         .codec = choice.codec,
                         .algorithm = choice.algorithm,
                         .tag = exchange.tag,
                         .deadline = exchange.deadline,
                         .pool = pool},
                        exchange.transport));
}

absl::Status GroupCommunicator::AllGather(const void* send, size_t bytes, void* recv) {
  NIBBLE_ASSIGN_OR_RETURN(const ExchangeArgs exchange, Begin());
  if (bytes == 0) return absl::OkStatus();
  std::vector<size_t> offsets(static_cast<size_t>(size()) + 1);
  for (size_t i = 1; i < offsets.size(); ++i) offsets[i] = offsets[i - 1] + bytes;
  auto* const all = static_cast<std::byte*>(recv);
  std::byte* const mine = all + offsets[static_cast<size_t>(rank())];
  if (mine != send) std::memcpy(mine, send, bytes);
  return End(AllGatherInPlace(exchange, all, offsets));
}

absl::Status GroupCommunicator::Gather(const void* send, const size_t* bytes_of_rank, void* recv,
                                       int root) {
  NIBBLE_ASSIGN_OR_RETURN(const ExchangeArgs exchange, Begin());
  std::vector<size_t> offsets(static_cast<size_t>(size()) + 1);
  for (size_t i = 1; i < offsets.size(); ++i) offsets[i] = offsets[i - 1] + bytes_of_rank[i - 1];
  return End(GatherTo(exchange, send, static_cast<std::byte*>(recv), offsets, root));
}

absl::Status GroupCommunicator::Broadcast(void* data, size_t bytes, int root) {
  NIBBLE_ASSIGN_OR_RETURN(const ExchangeArgs exchange, Begin());
  return End(BroadcastFrom(exchange, data, bytes, root));
}

absl::Status GroupCommunicator::Barrier() {
  NIBBLE_ASSIGN_OR_RETURN(const ExchangeArgs exchange, Begin());
  return End(WaitForAll(exchange));
}

void GroupCommunicator::Abort(const std::string& reason) { links_.network->Abort(reason); }

}  // namespace nibble::comm
