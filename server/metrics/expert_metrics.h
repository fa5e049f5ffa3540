// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Metrics of a model with experts, beside those of metrics.h; a dense one has none.
//
//   nibble:moe_expert_tokens_total{layer,expert}   tokens that went to the expert
//   nibble:moe_balancedness{layer}                 mean / max of the expert ranks' tokens, 1 is
//   ideal
//
// The counters are one series for each pair of layer and expert: 256 for Mixtral-8x7B, 6144 for
// Qwen3-30B-A3B. They are written straight to text, without a registry. A model with more pairs
// than the limit has the balance alone.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "base/clock.h"
#include "engine/moe/expert_layout.h"
#include "engine/moe/expert_load.h"

namespace nibble::server {

struct ExpertMetricsConfig {
  std::string model_name;
  std::vector<bool> is_moe_layer;  // [num_layers]: the others have no series
  engine::ExpertLayout layout;     // which experts are on which rank
  int64_t num_expert_ranks = 1;
  int64_t max_series = 2048;  // of counters
};

// Thread-safe.
class ExpertMetrics {
 public:
  // The balance is of the tokens since the scrape that was this long ago or longer: scrapers that
  // come in turn do not take each other's windows. Time without tokens does not count.
  static constexpr int64_t kWindowNs = 10'000'000'000;

  explicit ExpertMetrics(ExpertMetricsConfig config, const Clock* clock = &Clock::Monotonic());

  bool has_counters() const { return has_counters_; }
  // The text exposition format; `load` is what Executor::expert_load() gives, which may be empty.
  std::string Serialize(const engine::ExpertLoad& load);

 private:
  void UpdateBalance(const engine::ExpertLoad& load);

  const ExpertMetricsConfig config_;
  const Clock* const clock_;
  const std::string model_label_;  // escaped
  bool has_counters_ = false;

  std::mutex mutex_;
  // Guarded by mutex_:
  engine::ExpertLoad window_start_;
  int64_t window_start_ns_ = 0;
  bool has_balance_ = false;     // of a whole window
  std::vector<double> balance_;  // [num_layers]
};

}  // namespace nibble::server
