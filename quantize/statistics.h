// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Gathers InputStatistics from the rows that a BlockRunner shows.
#pragma once

#include <cstdint>

#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "quantize/block_runner.h"
#include "quantize/methods/calibration_data.h"

namespace nibble::quantize {

struct StatisticsOptions {
  int64_t num_tokens = 0;     // that will be shown to every site
  int64_t max_samples = 512;  // tokens kept whole, evenly spaced over all
};

// Sums are taken in one order: products of some rows in float by the dense GEMM, these in double.
// The result does not depend on the number of threads, but on how rows were cut into calls.
class StatisticsCollector {
 public:
  StatisticsCollector(const StatisticsOptions& options, Isa isa, ThreadPool* pool)
      : options_(options), isa_(isa), pool_(pool) {}

  // A SiteObserver. INVALID_ARGUMENT naming site, token and channel for a value that is not finite.
  absl::Status Observe(Site site, const float* rows, int64_t num_rows, int64_t k);
  // After all tokens were shown.
  BlockStatistics Finish();

 private:
  absl::Status AddMagnitudes(Site site, const float* rows, int64_t num_rows,
                             InputStatistics* statistics);
  absl::Status AddProducts(const float* rows, int64_t num_rows, InputStatistics* statistics);
  void AddSamples(const float* rows, int64_t num_rows, InputStatistics* statistics);

  const StatisticsOptions options_;
  const Isa isa_;
  ThreadPool* pool_;
  BlockStatistics statistics_;
};

}  // namespace nibble::quantize
