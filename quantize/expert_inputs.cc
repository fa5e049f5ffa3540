// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/expert_inputs.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"
#include "quantize/feed_forward_runner.h"
#include "quantize/moe_runner.h"
#include "quantize/statistics.h"

namespace nibble::quantize {
namespace {

constexpr int64_t kRowsPerRun = 1024;

}  // namespace

ExpertInputs::ExpertInputs(const MoeWeights& weights, const ExpertInputsOptions& options,
                           ThreadPool* pool)
    : hidden_(weights.router.k),
      experts_per_tok_(weights.num_experts_per_tok),
      num_routed_(static_cast<size_t>(weights.num_routed())),
      options_(options),
      pool_(pool),
      rows_(static_cast<size_t>(options.num_tokens * hidden_)),
      tokens_of_expert_(num_routed_) {}

void ExpertInputs::Add(const float* rows, int64_t num_rows) {
  NIBBLE_CHECK_LE(num_added_ + num_rows, options_.num_tokens);
  std::copy(rows, rows + num_rows * hidden_, rows_.data() + num_added_ * hidden_);
  num_added_ += num_rows;
}

absl::Status ExpertInputs::Route(const MoeWeights& weights) {
  NIBBLE_CHECK_EQ(num_added_, options_.num_tokens);
  NIBBLE_ASSIGN_OR_RETURN(Router router, Router::Create(weights, options_.isa, pool_));
  std::vector<int32_t> ids(static_cast<size_t>(kRowsPerRun * experts_per_tok_));
  std::vector<float> shares(ids.size());
  for (int64_t first = 0; first < num_added_; first += kRowsPerRun) {
    const int64_t num_tokens = std::min(kRowsPerRun, num_added_ - first);
    router.Route(rows_.data() + first * hidden_, num_tokens, ids.data(), shares.data(), pool_);
    for (int64_t i = 0; i < num_tokens * experts_per_tok_; ++i) {
      tokens_of_expert_[static_cast<size_t>(ids[static_cast<size_t>(i)])].push_back(
          static_cast<int32_t>(first + i / experts_per_tok_));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ExpertStatistics> ExpertInputs::StatisticsOf(size_t expert_idx,
                                                            const FeedForward& expert) {
  ExpertStatistics statistics;
  std::vector<int32_t> tokens;
  if (expert_idx < num_routed_) tokens = tokens_of_expert_[expert_idx];
  statistics.num_tokens =
      expert_idx < num_routed_ ? static_cast<int64_t>(tokens.size()) : num_added_;
  statistics.all_tokens = expert_idx < num_routed_ && statistics.num_tokens < options_.min_tokens;
  if (expert_idx >= num_routed_ || statistics.all_tokens) {
    tokens.resize(static_cast<size_t>(num_added_));
    std::iota(tokens.begin(), tokens.end(), 0);
  }

  NIBBLE_ASSIGN_OR_RETURN(const FeedForwardRunner runner,
                          FeedForwardRunner::Create(expert, 16, options_.isa, pool_));
  const StatisticsOptions options = {.num_tokens = static_cast<int64_t>(tokens.size())};
  SiteCollector gate_up(Site::kGateUp, options, options_.isa, pool_);
  SiteCollector down(Site::kDown, options, options_.isa, pool_);
  const auto observe = [&](Site site, const float* rows, int64_t num_rows, int64_t k) {
    return (site == Site::kGateUp ? gate_up : down).Observe(rows, num_rows, k);
  };
  FeedForwardWorkspace workspace;
  AlignedBuffer<float> rows(static_cast<size_t>(kRowsPerRun * hidden_));
  for (size_t first = 0; first < tokens.size(); first += kRowsPerRun) {
    const size_t num_rows = std::min<size_t>(kRowsPerRun, tokens.size() - first);
    for (size_t i = 0; i < num_rows; ++i) {
      const float* const row = rows_.data() + tokens[first + i] * hidden_;
      std::copy(row, row + hidden_, rows.data() + static_cast<int64_t>(i) * hidden_);
    }
    NIBBLE_RETURN_IF_ERROR(runner.Run(rows.data(), static_cast<int64_t>(num_rows), observe, nullptr,
                                      &workspace, pool_));
  }
  statistics.gate_up = gate_up.Finish();
  statistics.down = down.Finish();
  return statistics;
}

}  // namespace nibble::quantize
