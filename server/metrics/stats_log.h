// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The engine's work in the log: a line every 10 s while there is any, and one more when it has
// ended, so that an idle server is silent.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "engine/engine.h"

namespace nibble::server {

// What the engine has done since the start.
struct WorkDone {
  int64_t prompt_tokens = 0;
  int64_t generated_tokens = 0;
  int64_t prefix_cache_queries = 0;  // tokens
  int64_t prefix_cache_hits = 0;     // tokens
};

// What is worth a line.
class StatsLines {
 public:
  // The line for the time since the last call; nullopt when nothing happened in it nor in the one
  // before.
  std::optional<std::string> Next(const engine::EngineStats& now, const WorkDone& done,
                                  double seconds);

 private:
  WorkDone last_;
  double hit_rate_ = 0;  // where prompts were looked up last
  bool was_busy_ = false;
};

// Between the engine and its observer. The engine must not outlive it.
class WorkCounter final : public engine::EngineObserver {
 public:
  explicit WorkCounter(engine::EngineObserver* next) : next_(next) {}

  void OnStep(const engine::StepStats& stats) override;
  void OnFinished(const engine::FinishedRequestStats& stats) override { next_->OnFinished(stats); }
  WorkDone Done() const;  // from any thread

 private:
  engine::EngineObserver* const next_;
  std::atomic<int64_t> prompt_tokens_{0};
  std::atomic<int64_t> generated_tokens_{0};
  std::atomic<int64_t> prefix_cache_queries_{0};
  std::atomic<int64_t> prefix_cache_hits_{0};
};

class StatsLog {
 public:
  // `counter` and what `stats` asks must outlive this.
  StatsLog(const WorkCounter* counter, std::function<engine::EngineStats()> stats,
           std::chrono::milliseconds period = std::chrono::seconds(10));
  ~StatsLog();
  StatsLog(const StatsLog&) = delete;
  StatsLog& operator=(const StatsLog&) = delete;

 private:
  void Run();

  const WorkCounter* const counter_;
  const std::function<engine::EngineStats()> stats_;
  const std::chrono::milliseconds period_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;  // guarded by mutex_
  std::thread thread_;     // last: it uses all of the above
};

}  // namespace nibble::server
