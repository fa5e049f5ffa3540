// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/link_end.h"

#include <utility>

#include "comm/group_address.h"
#include "comm/shm/shm_transport.h"

namespace nibble::comm {

LinkEnd::LinkEnd(const GroupPlace& place, int sender, int receiver)
    : place_(place), sender_(sender), receiver_(receiver), part_(fmt::format("link{}", sender)) {}

absl::StatusOr<std::unique_ptr<LinkEnd>> LinkEnd::Prepare(const GroupPlace& place, int sender,
                                                          int receiver) {
  std::unique_ptr<LinkEnd> end(new LinkEnd(place, sender, receiver));
  NIBBLE_RETURN_IF_ERROR(end->Open());
  return end;
}

absl::Status LinkEnd::Open() {
  const int rank = is_sender() ? 0 : 1;
  const int node = place_.node_of_rank[static_cast<size_t>(sender_)];
  if (node == place_.node_of_rank[static_cast<size_t>(receiver_)]) {
    NIBBLE_ASSIGN_OR_RETURN(segment_, ShmSegment::Prepare({.rank = rank,
                                                           .num_ranks = 2,
                                                           .first_rank = sender_,
                                                           .rank_stride = receiver_ - sender_,
                                                           .node = node,
                                                           .group_id = place_.group_id,
                                                           .generation = place_.generation,
                                                           .part = part_,
                                                           .messages_only = true}));
  } else {
    NIBBLE_ASSIGN_OR_RETURN(
        transport_, TcpTransport::Open({.rank = rank,
                                        .size = 2,
                                        .first_rank = sender_,
                                        .rank_stride = receiver_ - sender_,
                                        .group_id = fmt::format("{}.{}", place_.group_id, part_),
                                        .generation = place_.generation,
                                        .may_sleep = true,
                                        .bind_address = place_.bind_address}));
  }
  address_ = Serialize(GroupAddress{.rank = static_cast<uint32_t>(place_.rank),
                                    .size = static_cast<uint32_t>(place_.size()),
                                    .generation = place_.generation,
                                    .group_id = fmt::format("{}.{}", place_.group_id, part_),
                                    .network = transport_ == nullptr ? "" : transport_->address()});
  return absl::OkStatus();
}

absl::StatusOr<LinkConnection> LinkEnd::Connect(const std::string& address, Deadline deadline) {
  const GroupAddress expected = {.rank = static_cast<uint32_t>(peer()),
                                 .size = static_cast<uint32_t>(place_.size()),
                                 .generation = place_.generation,
                                 .group_id = fmt::format("{}.{}", place_.group_id, part_),
                                 .network = {}};
  NIBBLE_ASSIGN_OR_RETURN(std::string network, CheckGroupAddress(address, expected));
  LinkConnection connection{.peer_name = fmt::format("rank {}", peer())};
  if (segment_ != nullptr) {
    NIBBLE_RETURN_IF_ERROR(segment_->Connect(deadline));
    const std::lock_guard lock(mutex_);
    connection.segment = std::move(segment_);
    connection.transport = std::make_unique<ShmTransport>(connection.segment.get());
    return connection;
  }
  const std::string both[] = {is_sender() ? transport_->address() : network,
                              is_sender() ? network : transport_->address()};
  NIBBLE_RETURN_IF_ERROR(transport_->Connect(both, deadline));
  const std::lock_guard lock(mutex_);
  connection.transport = std::move(transport_);
  return connection;
}

void LinkEnd::Abort(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  if (segment_ != nullptr) segment_->Abort(reason);
  if (transport_ != nullptr) transport_->Abort(reason);
}

}  // namespace nibble::comm
