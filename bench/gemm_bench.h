// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Every GEMM variant that this CPU runs, against the machine's own limits.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "nlohmann/json_fwd.hpp"

#include "base/status.h"
#include "base/thread_pool.h"

namespace nibble::bench {

struct GemmBenchOptions {
  int64_t n = 4096;
  int64_t k = 14336;
  std::vector<int64_t> m = {1, 4, 16, 128};
  std::string filter;    // of the variant's name
  double seconds = 0.3;  // of each figure, and at least 5 runs
  // Of copies that are used in turn: more than any cache holds.
  int64_t rotated_bytes = int64_t{256} << 20;

  void Validate(std::vector<std::string>* violations) const;
};

// Weights are rotated through copies past the last-level cache, as a model's layers are. Every row
// has its own peaks, measured right before it. INVALID_ARGUMENT when no variant matches the filter.
absl::StatusOr<nlohmann::ordered_json> RunGemmBench(const GemmBenchOptions& options,
                                                    ThreadPool* pool, std::FILE* table);

}  // namespace nibble::bench
