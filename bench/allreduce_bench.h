// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The all-reduce of a group of ranks: every codec and size against the best uncompressed one of the
// same run. Ranks are processes that the benchmark forks, threads, or processes started by hand on
// several hosts or in several network namespaces, which meet in a folder they all see.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "nlohmann/json_fwd.hpp"

#include "base/status.h"

namespace nibble::bench {

struct AllReduceBenchOptions {
  int64_t ranks = 2;
  std::string transport = "shm";  // shm, tcp, threads
  int64_t hosts = 0;              // that ranks are divided among, with tcp; 0: each has its own
  // Of messages as bf16.
  std::vector<int64_t> sizes = {8 << 10, 32 << 10, 128 << 10, 1 << 20, 8 << 20, 32 << 20, 64 << 20};
  int64_t row_size = 4096;  // values of a row, as a model's hidden size
  std::vector<std::string> codecs = {"none", "float32", "bf16", "int8", "int6",
                                     "int5", "int4",    "int3", "auto"};
  int64_t group_size = 128;
  bool log2_scales = false;
  bool spikes = false;
  bool rotation = true;
  double seconds = 0.3;    // of each figure, and at least 5 runs
  int64_t threads = 0;     // of each rank; 0: the host's divided among its ranks
  int64_t rank = -1;       // not -1: this process is that rank, and the others meet it in ...
  std::string rendezvous;  // ... this folder, which must be empty at first
  std::string bind_address = "127.0.0.1";  // of this host, for tcp

  void Validate(std::vector<std::string>* violations) const;
};

// REQUIRES a process with one thread, as it forks. Null on ranks other than 0 that were started by
// hand: rank 0 prints.
absl::StatusOr<nlohmann::ordered_json> RunAllReduceBench(const AllReduceBenchOptions& options,
                                                         std::FILE* table);

}  // namespace nibble::bench
