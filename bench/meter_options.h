// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// How figures of a device are taken; plain, for callers in builds with CUDA and without.
#pragma once

#include <cstdint>

namespace nibble::bench {

struct MeterOptions {
  double seconds = 0.02;      // of each figure, at least
  int min_runs = 5;           // launches of a graph, at least
  int64_t rotated_bytes = 0;  // what is read in turn; 0: three times the second-level cache
  int peak_rounds = 2000;     // of the loop that measures what multiplying is limited by
};

}  // namespace nibble::bench
