// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Ranks on loopback that are threads of a test.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

#include "comm/tcp/tcp_transport.h"

namespace nibble::comm {

// Long enough for a busy machine and a sanitizer; no test waits so long for something that comes.
inline Deadline Patient() { return Deadline::After(std::chrono::seconds(120)); }
inline Deadline Soon() { return Deadline::After(std::chrono::milliseconds(150)); }

inline TcpPlace Place(int rank, int size, uint64_t generation = 1) {
  return {.rank = rank,
          .size = size,
          .group_id = "test",
          .generation = generation,
          .bind_address = "127.0.0.1"};
}

inline std::unique_ptr<TcpTransport> Opened(const TcpPlace& place) {
  auto transport = TcpTransport::Open(place);
  EXPECT_TRUE(transport.ok()) << transport.status();
  return transport.ok() ? *std::move(transport) : nullptr;
}

inline std::vector<std::unique_ptr<TcpTransport>> OpenedGroup(int size, uint64_t generation = 1) {
  std::vector<std::unique_ptr<TcpTransport>> group;
  for (int rank = 0; rank < size; ++rank) group.push_back(Opened(Place(rank, size, generation)));
  return group;
}

inline std::vector<std::string> AddressesOf(
    const std::vector<std::unique_ptr<TcpTransport>>& group) {
  std::vector<std::string> addresses;
  for (const auto& transport : group) addresses.push_back(transport->address());
  return addresses;
}

// `act(transport)` of each rank in a thread of its own, which also destroys the transport.
inline void RunRanks(std::vector<std::unique_ptr<TcpTransport>> group,
                     const std::function<void(TcpTransport*)>& act) {
  std::vector<std::thread> threads;
  for (auto& transport : group) {
    threads.emplace_back([&act, own = std::move(transport)] { act(own.get()); });
  }
  for (std::thread& thread : threads) thread.join();
}

// The same for ranks that have connected.
inline void RunConnected(int size, const std::function<void(TcpTransport*)>& act) {
  auto group = OpenedGroup(size);
  const std::vector<std::string> addresses = AddressesOf(group);
  RunRanks(std::move(group), [&](TcpTransport* transport) {
    const absl::Status status = transport->Connect(addresses, Patient());
    ASSERT_TRUE(status.ok()) << status;
    act(transport);
  });
}

inline Ticket Begun(absl::StatusOr<Ticket> ticket) {
  EXPECT_TRUE(ticket.ok()) << ticket.status();
  return ticket.ok() ? *ticket : 0;
}

// What `from` sends to `to` with `tag`.
inline std::string Bytes(int from, int to, uint64_t tag, size_t size) {
  std::string bytes(size, '\0');
  for (size_t i = 0; i < size; ++i) {
    bytes[i] = static_cast<char>(i * 7 + i / 251 + static_cast<size_t>(from * 31 + to * 3) + tag);
  }
  return bytes;
}

// One message each way between two ranks that are in order.
inline void ExchangeWith(Transport* transport, int peer, size_t size = 100) {
  const std::string out = Bytes(transport->rank(), peer, 9, size);
  std::string in(size, '?');
  const Ticket receive = Begun(transport->Receive(peer, 9, in.data(), size));
  const Ticket send = Begun(transport->Send(peer, 9, out.data(), size));
  const absl::Status received = transport->Wait(receive, Patient());
  ASSERT_TRUE(received.ok()) << received;
  const absl::Status sent = transport->Wait(send, Patient());
  ASSERT_TRUE(sent.ok()) << sent;
  EXPECT_TRUE(in == Bytes(peer, transport->rank(), 9, size));
}

}  // namespace nibble::comm
