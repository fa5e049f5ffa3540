// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The ranks of this host: starts a process for each, carries frames to and from it through a socket
// pair, and tells when it ends. The processes end with this one, whatever ends it.
//
//   auto ranks = LocalRanks::Create({.num_ranks = 2, .command = [](int rank) {
//     return std::vector<std::string>{"/proc/self/exe", "rank", "--rank", std::to_string(rank)};
//   }});
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "comm/ranks/rank_hub.h"

namespace nibble::comm {

struct LocalRanksOptions {
  int first_rank = 0;
  int num_ranks = 1;
  // Program (a path) and arguments of a rank's process. "--control-fd" and the number of its
  // descriptor (kRankControlFd) are appended.
  std::function<std::vector<std::string>(int rank)> command;
  // A rank that takes no byte of what waits for it for so long, or leaves so much unread, is ended.
  std::chrono::milliseconds send_timeout{10'000};
  size_t max_unread_bytes = size_t{512} << 20;
  // Stop: how long the processes may take to end by themselves, once their channels are closed.
  std::chrono::milliseconds stop_grace{3'000};
  // Between the death of a process that lived less than `young` and the start of the next one: the
  // first wait, doubled up to the longest for each young death in a row.
  std::chrono::milliseconds young{10'000};
  std::chrono::milliseconds first_backoff{100};
  std::chrono::milliseconds longest_backoff{10'000};
};

// The descriptor of a rank's end of the socket pair, in its process.
inline constexpr int kRankControlFd = 3;

class LocalRanks : public RankHub {
 public:
  // INVALID_ARGUMENT for options that make no sense, NOT_FOUND for a program that cannot be run.
  static absl::StatusOr<std::unique_ptr<LocalRanks>> Create(LocalRanksOptions options);
  ~LocalRanks() override = default;  // Stop()s

  // Ranks are numbered from options.first_rank here too. OnUp comes when the process was started.
  // Standard input of a process is /dev/null, output and error are this process's; SIGINT and
  // SIGTERM, which terminals and supervisors send to all processes, are ignored, so that draining
  // is the driver's business.
  int size() const override = 0;
};

}  // namespace nibble::comm
