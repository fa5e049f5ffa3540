// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Gathers InputStatistics from the rows that a BlockRunner shows.
#pragma once

#include <array>
#include <cstdint>

#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "quantize/methods/calibration_data.h"
#include "quantize/methods/equalization.h"

namespace nibble::quantize {

struct StatisticsOptions {
  int64_t num_tokens = 0;     // that will be shown to every site
  int64_t max_samples = 512;  // tokens kept whole, evenly spaced over all
};

// Of one site. Sums are taken in one order: products of some rows in float by the dense GEMM, these
// in double. The result does not depend on the number of threads, but on how rows were cut into
// calls.
class SiteCollector {
 public:
  SiteCollector(Site site, const StatisticsOptions& options, Isa isa, ThreadPool* pool)
      : site_(site), options_(options), isa_(isa), pool_(pool) {}

  // Rows [num_rows, k]. INVALID_ARGUMENT naming site, token and channel for a value that is not
  // finite.
  absl::Status Observe(const float* rows, int64_t num_rows, int64_t k);
  // After all tokens were shown, or none: empty statistics.
  InputStatistics Finish();

 private:
  absl::Status AddMagnitudes(const float* rows, int64_t num_rows);
  absl::Status AddProducts(const float* rows, int64_t num_rows);
  void AddSamples(const float* rows, int64_t num_rows);

  Site site_;
  StatisticsOptions options_;
  Isa isa_;
  ThreadPool* pool_;
  InputStatistics statistics_;
};

// Of the sites of a block.
class StatisticsCollector {
 public:
  StatisticsCollector(const StatisticsOptions& options, Isa isa, ThreadPool* pool)
      : collectors_{SiteCollector(Site::kQkv, options, isa, pool),
                    SiteCollector(Site::kO, options, isa, pool),
                    SiteCollector(Site::kGateUp, options, isa, pool),
                    SiteCollector(Site::kDown, options, isa, pool)} {}

  // A SiteObserver.
  absl::Status Observe(Site site, const float* rows, int64_t num_rows, int64_t k) {
    return collectors_[static_cast<size_t>(site)].Observe(rows, num_rows, k);
  }
  // After all tokens were shown. A site that was shown none has empty statistics.
  BlockStatistics Finish();

 private:
  std::array<SiteCollector, 4> collectors_;  // as kSites
};

}  // namespace nibble::quantize
