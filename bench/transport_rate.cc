// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Latency and rate of the network transport between two ranks, one process each:
//
//   transport_rate RANK BIND_ADDRESS FOLDER
//
// FOLDER is shared by both and new: they leave their addresses in it. Rank 0 prints.
//
//   bench/network_namespaces.sh with 2 1gbit bash -c
//       'build/release/bin/transport_rate $NODE_RANK $NODE_ADDRESS /tmp/rate'
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "comm/tcp/tcp_transport.h"

namespace nibble::comm {
namespace {

using Seconds = std::chrono::duration<double>;

Deadline Limit() { return Deadline::After(std::chrono::seconds(30)); }

absl::StatusOr<std::vector<std::string>> ExchangeAddresses(const TcpTransport& transport,
                                                           const std::string& folder) {
  std::filesystem::create_directories(folder);
  const auto path = [&folder](int rank) { return folder + "/" + std::to_string(rank); };
  const std::string own = path(transport.rank());
  std::ofstream(own + ".new", std::ios::binary) << transport.address();
  std::filesystem::rename(own + ".new", own);
  std::vector<std::string> addresses;
  const Deadline deadline = Limit();
  for (int rank = 0; rank < transport.size(); ++rank) {
    while (!std::filesystem::exists(path(rank))) {
      if (deadline.Passed()) return Unavailable("rank {} left no address in {}", rank, folder);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    std::ifstream file(path(rank), std::ios::binary);
    addresses.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return addresses;
}

// Both directions at once, or there and back.
absl::Status Once(TcpTransport* transport, bool both, std::vector<char>* out, std::vector<char>* in,
                  size_t bytes) {
  const int peer = 1 - transport->rank();
  const auto receive = [&]() -> absl::Status {
    NIBBLE_ASSIGN_OR_RETURN(const Ticket ticket, transport->Receive(peer, 1, in->data(), bytes));
    return transport->Wait(ticket, Limit());
  };
  const auto send = [&]() -> absl::Status {
    NIBBLE_ASSIGN_OR_RETURN(const Ticket ticket, transport->Send(peer, 1, out->data(), bytes));
    return transport->Wait(ticket, Limit());
  };
  if (both) {
    NIBBLE_ASSIGN_OR_RETURN(const Ticket in_ticket, transport->Receive(peer, 1, in->data(), bytes));
    NIBBLE_RETURN_IF_ERROR(send());
    return transport->Wait(in_ticket, Limit());
  }
  if (transport->rank() == 0) {
    NIBBLE_RETURN_IF_ERROR(send());
    return receive();
  }
  NIBBLE_RETURN_IF_ERROR(receive());
  return send();
}

absl::Status Measure(TcpTransport* transport) {
  struct Case {
    bool both;
    size_t bytes;
    int times;
  };
  std::vector<char> out(32 << 20, 1);
  std::vector<char> in(32 << 20, 2);
  for (const Case& c :
       {Case{false, 64, 1000}, Case{false, 32 << 10, 500}, Case{true, 32 << 10, 500},
        Case{true, 256 << 10, 100}, Case{true, 1 << 20, 40}, Case{true, 4 << 20, 20},
        Case{true, 32 << 20, 5}}) {
    std::vector<double> times_us;
    for (int i = -c.times / 10 - 1; i < c.times; ++i) {  // the first ones warm up
      const auto start = std::chrono::steady_clock::now();
      NIBBLE_RETURN_IF_ERROR(Once(transport, c.both, &out, &in, c.bytes));
      const Seconds took = std::chrono::steady_clock::now() - start;
      if (i >= 0) times_us.push_back(took.count() * 1e6);
    }
    std::ranges::sort(times_us);
    const auto at = [&times_us](double share) {
      return times_us[static_cast<size_t>(share * static_cast<double>(times_us.size() - 1))];
    };
    if (transport->rank() == 0) {
      std::printf("%s of %8zu bytes: p50 %9.1f us, p99 %9.1f, max %9.1f; %7.3f Gbit/s each way\n",
                  c.both ? "exchange  " : "round trip", c.bytes, at(0.5), at(0.99), at(1.0),
                  static_cast<double>(c.bytes) * (c.both ? 8e-3 : 16e-3) / at(0.5));
    }
  }
  return absl::OkStatus();
}

absl::Status Run(int rank, const std::string& bind_address, const std::string& folder) {
  NIBBLE_ASSIGN_OR_RETURN(const auto transport, TcpTransport::Open({.rank = rank,
                                                                    .size = 2,
                                                                    .group_id = "rate",
                                                                    .generation = 1,
                                                                    .bind_address = bind_address}));
  NIBBLE_ASSIGN_OR_RETURN(const auto addresses, ExchangeAddresses(*transport, folder));
  NIBBLE_RETURN_IF_ERROR(transport->Connect(addresses, Limit()));
  return Measure(transport.get());
}

}  // namespace
}  // namespace nibble::comm

int main(int count, char** arguments) {
  const std::string rank = count == 4 ? arguments[1] : "";
  if (rank != "0" && rank != "1") {
    std::fprintf(stderr, "usage: transport_rate 0|1 BIND_ADDRESS FOLDER\n");
    return 2;
  }
  const absl::Status status = nibble::comm::Run(rank == "1" ? 1 : 0, arguments[2], arguments[3]);
  if (!status.ok()) std::fprintf(stderr, "rank %s: %s\n", rank.c_str(), status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
