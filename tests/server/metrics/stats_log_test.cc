// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/metrics/stats_log.h"

#include <atomic>
#include <chrono>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::server {
namespace {

TEST(StatsLinesTest, ALineWhileThereIsWorkAndOneAfterIt) {
  StatsLines lines;
  WorkDone done;
  engine::EngineStats now = {.kv_blocks_total = 200};
  EXPECT_FALSE(lines.Next(now, done, 10.0).has_value());
  now = {.num_running = 3, .num_waiting = 2, .kv_blocks_total = 200, .kv_blocks_used = 25};
  done = {.prompt_tokens = 100,
          .generated_tokens = 255,
          .prefix_cache_queries = 100,
          .prefix_cache_hits = 40};
  EXPECT_EQ(lines.Next(now, done, 10.0),
            "Avg prompt throughput: 10.0 tokens/s, Avg generation throughput: 25.5 tokens/s, "
            "Running: 3 reqs, Waiting: 2 reqs, KV cache usage: 12.5%, Prefix cache hit rate: "
            "40.0%");
  // Of the time since then; no prompts were looked up in it.
  done.generated_tokens += 20;
  EXPECT_EQ(lines.Next(now, done, 5.0),
            "Avg prompt throughput: 0.0 tokens/s, Avg generation throughput: 4.0 tokens/s, "
            "Running: 3 reqs, Waiting: 2 reqs, KV cache usage: 12.5%, Prefix cache hit rate: "
            "40.0%");
  // It stands still: that is worth a line too.
  EXPECT_TRUE(lines.Next(now, done, 10.0).has_value());
  now = {.kv_blocks_total = 200};
  EXPECT_THAT(lines.Next(now, done, 10.0).value_or(""), ::testing::HasSubstr("Running: 0 reqs"));
  EXPECT_FALSE(lines.Next(now, done, 10.0).has_value());
  // A request that came and went between two looks.
  done.prompt_tokens += 10;
  EXPECT_TRUE(lines.Next(now, done, 10.0).has_value());
  EXPECT_TRUE(lines.Next(now, done, 10.0).has_value());
  EXPECT_FALSE(lines.Next(now, done, 10.0).has_value());
}

class Next final : public engine::EngineObserver {
 public:
  void OnStep(const engine::StepStats&) override { ++steps; }
  void OnFinished(const engine::FinishedRequestStats&) override { ++finished; }
  int steps = 0;
  int finished = 0;
};

TEST(WorkCounterTest, CountsAndHandsOn) {
  Next next;
  WorkCounter counter(&next);
  counter.OnStep({.num_prompt_tokens = 3, .num_generated_tokens = 2, .prefix_cache_queries = 9});
  counter.OnStep({.num_generated_tokens = 4, .prefix_cache_hits = 5});
  counter.OnFinished({});
  EXPECT_EQ(next.steps, 2);
  EXPECT_EQ(next.finished, 1);
  const WorkDone done = counter.Done();
  EXPECT_EQ(done.prompt_tokens, 3);
  EXPECT_EQ(done.generated_tokens, 6);
  EXPECT_EQ(done.prefix_cache_queries, 9);
  EXPECT_EQ(done.prefix_cache_hits, 5);
}

TEST(StatsLogTest, LooksAtTheEngineUntilItEnds) {
  Next next;
  const WorkCounter counter(&next);
  std::atomic<int> looks{0};
  const auto look = [&] {
    ++looks;
    return engine::EngineStats();
  };
  {
    const StatsLog log(&counter, look, std::chrono::milliseconds(1));
    while (looks < 2) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  const StatsLog at_its_default_period(&counter, look);  // ends at once all the same
}

}  // namespace
}  // namespace nibble::server
