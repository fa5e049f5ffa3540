// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/metrics/stats_log.h"

#include <utility>

#include "fmt/core.h"

#include "base/log.h"

namespace nibble::server {
namespace {

double Ratio(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0.0;
}

}  // namespace

std::optional<std::string> StatsLines::Next(const engine::EngineStats& now, const WorkDone& done,
                                            double seconds) {
  const int64_t prompt = done.prompt_tokens - last_.prompt_tokens;
  const int64_t generated = done.generated_tokens - last_.generated_tokens;
  const int64_t queries = done.prefix_cache_queries - last_.prefix_cache_queries;
  const int64_t hits = done.prefix_cache_hits - last_.prefix_cache_hits;
  last_ = done;
  if (queries > 0) hit_rate_ = Ratio(hits, queries);
  const bool is_busy = now.num_running + now.num_waiting + prompt + generated > 0;
  if (!std::exchange(was_busy_, is_busy) && !is_busy) return std::nullopt;
  // The words of vLLM's line, for whoever looks for them.
  return fmt::format(
      "Avg prompt throughput: {:.1f} tokens/s, Avg generation throughput: {:.1f} tokens/s, "
      "Running: {} reqs, Waiting: {} reqs, KV cache usage: {:.1f}%, Prefix cache hit rate: {:.1f}%",
      static_cast<double>(prompt) / seconds, static_cast<double>(generated) / seconds,
      now.num_running, now.num_waiting, 100.0 * Ratio(now.kv_blocks_used, now.kv_blocks_total),
      100.0 * hit_rate_);
}

void WorkCounter::OnStep(const engine::StepStats& stats) {
  prompt_tokens_.fetch_add(stats.num_prompt_tokens);
  generated_tokens_.fetch_add(stats.num_generated_tokens);
  prefix_cache_queries_.fetch_add(stats.prefix_cache_queries);
  prefix_cache_hits_.fetch_add(stats.prefix_cache_hits);
  next_->OnStep(stats);
}

WorkDone WorkCounter::Done() const {
  // Hits first: of a step that ends meanwhile they must not be more than its queries.
  const int64_t hits = prefix_cache_hits_.load();
  return {.prompt_tokens = prompt_tokens_.load(),
          .generated_tokens = generated_tokens_.load(),
          .prefix_cache_queries = prefix_cache_queries_.load(),
          .prefix_cache_hits = hits};
}

StatsLog::StatsLog(const WorkCounter* counter, std::function<engine::EngineStats()> stats,
                   std::chrono::milliseconds period)
    : counter_(counter), stats_(std::move(stats)), period_(period), thread_([this] { Run(); }) {}

StatsLog::~StatsLog() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void StatsLog::Run() {
  using std::chrono::steady_clock;
  StatsLines lines;
  steady_clock::time_point last = steady_clock::now();
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, period_, [this] { return stopping_; })) {
    const steady_clock::time_point now = steady_clock::now();
    const double seconds = std::chrono::duration<double>(now - std::exchange(last, now)).count();
    const auto line = lines.Next(stats_(), counter_->Done(), seconds);
    if (line.has_value()) log::Info("{}", *line);
  }
}

}  // namespace nibble::server
