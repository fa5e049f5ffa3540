// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/metrics/expert_metrics.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "fmt/format.h"

#include "engine/moe/placement.h"

namespace nibble::server {
namespace {

// As the exposition format wants label values.
std::string Escaped(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    if (c == '\\' || c == '"') escaped += '\\';
    if (c == '\n') {
      escaped += "\\n";
    } else {
      escaped += c;
    }
  }
  return escaped;
}

bool SameShape(const engine::ExpertLoad& a, const engine::ExpertLoad& b) {
  return a.num_layers == b.num_layers && a.num_experts == b.num_experts;
}

// What came after `start`, nothing where `now` is the older one: of two scrapes at a time, the one
// that read first may come here last.
engine::ExpertLoad Since(const engine::ExpertLoad& start, const engine::ExpertLoad& now) {
  if (!SameShape(start, now)) return now;
  engine::ExpertLoad load = now;
  for (size_t i = 0; i < load.tokens.size(); ++i) {
    load.tokens[i] -= std::min(load.tokens[i], start.tokens[i]);
  }
  return load;
}

bool HasTokens(const engine::ExpertLoad& load) {
  return std::any_of(load.tokens.begin(), load.tokens.end(), [](uint64_t n) { return n > 0; });
}

}  // namespace

ExpertMetrics::ExpertMetrics(ExpertMetricsConfig config, const Clock* clock)
    : config_(std::move(config)),
      clock_(clock),
      model_label_(Escaped(config_.model_name)),
      window_start_ns_(clock->NowNs()),
      balance_(config_.is_moe_layer.size(), 1.0) {
  const int64_t num_moe_layers =
      std::count(config_.is_moe_layer.begin(), config_.is_moe_layer.end(), true);
  has_counters_ = num_moe_layers * config_.layout.num_experts <= config_.max_series;
}

void ExpertMetrics::UpdateBalance(const engine::ExpertLoad& load) {
  const engine::ExpertLoad recent = Since(window_start_, load);
  if (!HasTokens(recent)) return;
  const int64_t now_ns = clock_->NowNs();
  const bool is_over = now_ns - window_start_ns_ >= kWindowNs;
  if (has_balance_ && !is_over) return;
  balance_ = engine::Balancedness(recent, config_.layout, config_.num_expert_ranks);
  if (!is_over) return;  // the first window, as far as it got
  has_balance_ = true;
  window_start_ = load;
  window_start_ns_ = now_ns;
}

std::string ExpertMetrics::Serialize(const engine::ExpertLoad& load) {
  const auto num_layers = static_cast<int64_t>(config_.is_moe_layer.size());
  const int64_t num_experts = config_.layout.num_experts;
  // Of a group of ranks that has not told anything yet.
  const bool has_load = load.num_layers == num_layers && load.num_experts == num_experts;
  std::string text;
  const auto out = std::back_inserter(text);
  if (has_counters_) {
    fmt::format_to(out,
                   "# HELP nibble:moe_expert_tokens_total Tokens that went to the expert.\n"
                   "# TYPE nibble:moe_expert_tokens_total counter\n");
    for (int64_t layer = 0; layer < num_layers; ++layer) {
      if (!config_.is_moe_layer[static_cast<size_t>(layer)]) continue;
      for (int64_t expert = 0; expert < num_experts; ++expert) {
        fmt::format_to(out,
                       "nibble:moe_expert_tokens_total{{model_name=\"{}\",layer=\"{}\","
                       "expert=\"{}\"}} {}\n",
                       model_label_, layer, expert, has_load ? load.at(layer, expert) : 0);
      }
    }
  }
  fmt::format_to(out,
                 "# HELP nibble:moe_balancedness Mean by maximum of the tokens of the ranks that "
                 "share experts, over the last seconds in which "
                 "requests were computed; 1 is ideal, and what it is before any.\n"
                 "# TYPE nibble:moe_balancedness gauge\n");
  const std::lock_guard lock(mutex_);
  if (has_load) UpdateBalance(load);
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    if (!config_.is_moe_layer[static_cast<size_t>(layer)]) continue;
    fmt::format_to(out, "nibble:moe_balancedness{{model_name=\"{}\",layer=\"{}\"}} {}\n",
                   model_label_, layer, balance_[static_cast<size_t>(layer)]);
  }
  return text;
}

}  // namespace nibble::server
