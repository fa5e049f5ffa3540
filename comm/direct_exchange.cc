// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/direct_exchange.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace nibble::comm {
namespace {

// Receives are waited for first: who waits for its Send to end may wait for a peer that has not
// come to its Receive yet.
absl::Status WaitAll(const ExchangeArgs& args, const std::vector<Ticket>& receives,
                     const std::vector<Ticket>& sends) {
  for (const Ticket ticket : receives) {
    NIBBLE_RETURN_IF_ERROR(args.transport->Wait(ticket, args.deadline));
  }
  for (const Ticket ticket : sends) {
    NIBBLE_RETURN_IF_ERROR(args.transport->Wait(ticket, args.deadline));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status AllGatherInPlace(const ExchangeArgs& args, std::byte* data,
                              const std::vector<size_t>& offsets) {
  Transport& transport = *args.transport;
  const auto bytes_of = [&](size_t rank) { return offsets[rank + 1] - offsets[rank]; };
  const auto me = static_cast<size_t>(transport.rank());
  std::vector<Ticket> receives;
  std::vector<Ticket> sends;
  for (int i = 1; i < transport.size(); ++i) {
    const int peer = (transport.rank() + i) % transport.size();
    const auto part = static_cast<size_t>(peer);
    if (bytes_of(part) == 0) continue;
    NIBBLE_ASSIGN_OR_RETURN(
        const Ticket in, transport.Receive(peer, args.tag, data + offsets[part], bytes_of(part)));
    receives.push_back(in);
  }
  for (int i = 1; i < transport.size() && bytes_of(me) > 0; ++i) {
    const int peer = (transport.rank() + i) % transport.size();
    NIBBLE_ASSIGN_OR_RETURN(const Ticket out,
                            transport.Send(peer, args.tag, data + offsets[me], bytes_of(me)));
    sends.push_back(out);
  }
  return WaitAll(args, receives, sends);
}

absl::Status GatherTo(const ExchangeArgs& args, const void* send, std::byte* recv,
                      const std::vector<size_t>& offsets, int root) {
  Transport& transport = *args.transport;
  const auto bytes_of = [&](size_t rank) { return offsets[rank + 1] - offsets[rank]; };
  const auto me = static_cast<size_t>(transport.rank());
  std::vector<Ticket> receives;
  std::vector<Ticket> sends;
  if (transport.rank() != root) {
    if (bytes_of(me) == 0) return absl::OkStatus();
    NIBBLE_ASSIGN_OR_RETURN(const Ticket out, transport.Send(root, args.tag, send, bytes_of(me)));
    sends.push_back(out);
    return WaitAll(args, receives, sends);
  }
  for (int peer = 0; peer < transport.size(); ++peer) {
    const auto part = static_cast<size_t>(peer);
    if (peer == root || bytes_of(part) == 0) continue;
    NIBBLE_ASSIGN_OR_RETURN(
        const Ticket in, transport.Receive(peer, args.tag, recv + offsets[part], bytes_of(part)));
    receives.push_back(in);
  }
  if (bytes_of(me) > 0 && recv + offsets[me] != send) {
    std::memcpy(recv + offsets[me], send, bytes_of(me));
  }
  return WaitAll(args, receives, sends);
}

absl::Status BroadcastFrom(const ExchangeArgs& args, void* data, size_t bytes, int root) {
  Transport& transport = *args.transport;
  if (bytes == 0) return absl::OkStatus();
  std::vector<Ticket> receives;
  std::vector<Ticket> sends;
  if (transport.rank() != root) {
    NIBBLE_ASSIGN_OR_RETURN(const Ticket in, transport.Receive(root, args.tag, data, bytes));
    receives.push_back(in);
    return WaitAll(args, receives, sends);
  }
  for (int peer = 0; peer < transport.size(); ++peer) {
    if (peer == root) continue;
    NIBBLE_ASSIGN_OR_RETURN(const Ticket out, transport.Send(peer, args.tag, data, bytes));
    sends.push_back(out);
  }
  return WaitAll(args, receives, sends);
}

// Dissemination: after round k everyone has heard, through others, of 2^(k + 1) - 1 ranks.
absl::Status WaitForAll(const ExchangeArgs& args) {
  Transport& transport = *args.transport;
  const int size = transport.size();
  uint64_t round = 0;
  for (int64_t distance = 1; distance < size; distance *= 2, ++round) {
    const int to = static_cast<int>((transport.rank() + distance) % size);
    const int from = static_cast<int>((transport.rank() + size - distance) % size);
    NIBBLE_ASSIGN_OR_RETURN(const Ticket in, transport.Receive(from, args.tag | round, nullptr, 0));
    NIBBLE_ASSIGN_OR_RETURN(const Ticket out, transport.Send(to, args.tag | round, nullptr, 0));
    NIBBLE_RETURN_IF_ERROR(WaitAll(args, {in}, {out}));
  }
  return absl::OkStatus();
}

SubsetTransport::SubsetTransport(Transport* transport, std::vector<int> ranks)
    : transport_(transport), ranks_(std::move(ranks)) {
  const auto found = std::find(ranks_.begin(), ranks_.end(), transport->rank());
  NIBBLE_CHECK(found != ranks_.end());
  rank_ = static_cast<int>(found - ranks_.begin());
}

}  // namespace nibble::comm
