// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/attention/cuda/attention_plan.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/testing/random.h"

namespace nibble::kernels::cuda {
namespace {

using ::testing::HasSubstr;

AttentionPlanConfig SomeConfig() {
  return {.group = 4,
          .num_kv_heads = 2,
          .block_size = 16,
          .limits = {.max_tokens = 512, .max_seqs = 64, .max_blocks_per_seq = 256},
          .segment_keys = 256,
          .narrow_rows = 16,
          .wide_rows = 64,
          .target_units = 32,
          .max_state_rows = 1000};
}

// A step whose sequences have (new tokens, context) and blocks that count upwards.
struct Step {
  explicit Step(const std::vector<std::pair<int32_t, int32_t>>& sequences,
                int32_t block_size = 16) {
    query_start.push_back(0);
    for (const auto& [num_new, context] : sequences) {
      query_start.push_back(query_start.back() + num_new);
      context_lens.push_back(context);
      max_blocks = std::max<int64_t>(max_blocks, (context + block_size - 1) / block_size);
    }
    block_tables.assign(sequences.size() * static_cast<size_t>(max_blocks), -7);
    int32_t block = 0;
    for (size_t s = 0; s < sequences.size(); ++s) {
      for (int32_t i = 0; i * block_size < context_lens[s]; ++i) {
        block_tables[s * static_cast<size_t>(max_blocks) + static_cast<size_t>(i)] = block++;
      }
    }
  }
  AttentionStep View(int64_t graph_seqs = 0) const {
    return {.num_seqs = static_cast<int64_t>(context_lens.size()),
            .query_start = query_start.data(),
            .context_lens = context_lens.data(),
            .block_tables = block_tables.data(),
            .max_blocks_per_seq = max_blocks,
            .graph_seqs = graph_seqs};
  }
  std::vector<int32_t> query_start;
  std::vector<int32_t> context_lens;
  std::vector<int32_t> block_tables;
  int64_t max_blocks = 1;
};

// A plan as a kernel reads it.
struct Plan {
  AttentionPlanSummary summary;
  std::vector<int32_t> ints;
  AttentionPlanHeader header;

  template <typename T>
  std::vector<T> Read(int64_t begin, int64_t count) const {
    std::vector<T> items(static_cast<size_t>(count));
    if (count > 0) std::memcpy(items.data(), ints.data() + begin, items.size() * sizeof(T));
    return items;
  }
  std::vector<AttentionUnit> Units(int kind) const {
    return Read<AttentionUnit>(header.units_begin[kind], header.num_units[kind]);
  }
  std::vector<AttentionTask> Tasks() const {
    return Read<AttentionTask>(header.tasks_begin,
                               (header.units_begin[0] - header.tasks_begin) /
                                   static_cast<int64_t>(sizeof(AttentionTask) / sizeof(int32_t)));
  }
};

Plan MustPlan(const AttentionPlanConfig& config, const AttentionStep& step) {
  auto planner = AttentionPlanner::Create(config);
  EXPECT_TRUE(planner.ok()) << std::string(planner.status().message());
  Plan plan;
  constexpr int32_t kCanary = 123454321;
  plan.ints.assign(static_cast<size_t>(planner->max_ints()) + 8, kCanary);
  const auto summary = planner->Write(step, plan.ints.data());
  EXPECT_TRUE(summary.ok()) << std::string(summary.status().message());
  plan.summary = *summary;
  EXPECT_LE(plan.summary.num_ints, planner->max_ints());
  for (size_t i = static_cast<size_t>(plan.summary.num_ints); i < plan.ints.size(); ++i) {
    EXPECT_EQ(plan.ints[i], kCanary) << i;
  }
  std::memcpy(&plan.header, plan.ints.data(), sizeof(plan.header));
  return plan;
}

std::string Complaint(const AttentionPlanConfig& config, const AttentionStep& step) {
  auto planner = AttentionPlanner::Create(config);
  if (!planner.ok()) return std::string(planner.status().message());
  std::vector<int32_t> ints(static_cast<size_t>(planner->max_ints()));
  return std::string(planner->Write(step, ints.data()).status().message());
}

// Every segment of every task is of one unit; every row of every sequence of one task; states lie
// beside each other; tables are the step's.
void ExpectWhole(const AttentionPlanConfig& config, const Step& step, const Plan& plan) {
  const auto tasks = plan.Tasks();
  std::vector<std::vector<int>> covered;
  std::vector<int> num_units(tasks.size());
  for (const AttentionTask& task : tasks) {
    covered.emplace_back(static_cast<size_t>(task.num_segments));
  }
  for (int kind = 0; kind < 2; ++kind) {
    int64_t before = std::numeric_limits<int64_t>::max();
    for (const AttentionUnit& unit : plan.Units(kind)) {
      const auto task = static_cast<size_t>(unit.task);
      ASSERT_LT(task, tasks.size());
      EXPECT_LE(tasks[task].num_rows, kind == 1 ? config.wide_rows : config.narrow_rows);
      EXPECT_LE(tasks[task].num_segments, before) << "long tasks come first";
      before = tasks[task].num_segments;
      ++num_units[task];
      for (int32_t s = unit.segment_begin; s < unit.segment_end; ++s) {
        ++covered[task].at(static_cast<size_t>(s));
      }
    }
  }
  std::vector<std::vector<int>> rows(step.context_lens.size());
  int64_t num_states = 0;
  for (size_t t = 0; t < tasks.size(); ++t) {
    EXPECT_EQ(num_units[t], tasks[t].num_units);
    for (const int count : covered[t]) EXPECT_EQ(count, 1);
    if (tasks[t].num_units > 1) num_states += tasks[t].num_segments * tasks[t].num_rows;
    size_t s = 0;
    while (step.query_start[s + 1] <= tasks[t].token_begin) ++s;
    const int32_t num_new = step.query_start[s + 1] - step.query_start[s];
    EXPECT_EQ(tasks[t].token_begin, step.query_start[s]);
    EXPECT_EQ(tasks[t].first_position, step.context_lens[s] - num_new);
    rows[s].resize(static_cast<size_t>(num_new * config.group));
    for (int32_t r = 0; r < tasks[t].num_rows; ++r) {
      ++rows[s].at(static_cast<size_t>(tasks[t].row_begin + r));
    }
    const auto last_position =
        tasks[t].first_position + (tasks[t].row_begin + tasks[t].num_rows - 1) / config.group;
    EXPECT_EQ(tasks[t].num_segments, last_position / config.segment_keys + 1);
    for (int32_t i = 0; i * config.block_size < step.context_lens[s]; ++i) {
      EXPECT_EQ(
          plan.ints[static_cast<size_t>(tasks[t].table_begin + i)],
          step.block_tables[s * static_cast<size_t>(step.max_blocks) + static_cast<size_t>(i)]);
    }
  }
  EXPECT_LE(num_states, config.max_state_rows);
  for (size_t s = 0; s < rows.size(); ++s) {
    EXPECT_EQ(rows[s].size(),
              static_cast<size_t>((step.query_start[s + 1] - step.query_start[s]) * config.group));
    for (const int count : rows[s]) EXPECT_EQ(count, 1);
  }
}

TEST(AttentionPlan, DecodeOfOneLongSequenceIsSplit) {
  const AttentionPlanConfig config = SomeConfig();
  const Step step({{1, 4000}});
  const Plan plan = MustPlan(config, step.View());
  // 16 segments over a target of 16 units for each KV head.
  EXPECT_EQ(plan.summary.num_units[0], 16);
  EXPECT_EQ(plan.summary.num_units[1], 0);
  EXPECT_EQ(plan.summary.num_tokens, 1);
  EXPECT_EQ(plan.summary.max_block, 249);
  ExpectWhole(config, step, plan);
}

TEST(AttentionPlan, ManySequencesAreNotSplit) {
  const AttentionPlanConfig config = SomeConfig();
  const Step step(std::vector<std::pair<int32_t, int32_t>>(40, {1, 1000}));
  const Plan plan = MustPlan(config, step.View());
  EXPECT_EQ(plan.summary.num_units[0], 40);
  ExpectWhole(config, step, plan);
}

TEST(AttentionPlan, WhatHasNoRoomForStatesIsNotSplit) {
  AttentionPlanConfig config = SomeConfig();
  config.max_state_rows = 63;  // 16 segments of 4 rows are 64
  const Step step({{1, 4000}});
  EXPECT_EQ(MustPlan(config, step.View()).summary.num_units[0], 1);
}

TEST(AttentionPlan, ChunksAreWideAndShortOnesNarrow) {
  const AttentionPlanConfig config = SomeConfig();
  const Step step({{4, 100}, {5, 100}, {33, 33}, {1, 7}, {0, 50}});
  const Plan plan = MustPlan(config, step.View());
  EXPECT_EQ(plan.summary.num_units[0], 2);
  EXPECT_EQ(plan.summary.num_units[1], 1 + 3);  // 20 rows, and 132 in tasks of 64
  ExpectWhole(config, step, plan);
}

TEST(AttentionPlan, RandomStepsAreWhole) {
  testing::Random random(1);
  for (int i = 0; i < 300; ++i) {
    AttentionPlanConfig config = SomeConfig();
    config.group = random.Int(1, 20);
    config.num_kv_heads = random.Int(1, 8);
    config.wide_rows = random.Int(0, 1) == 0 ? 0 : 64;
    config.target_units = random.Int(1, 600);
    config.max_state_rows = random.Int(0, 3000);
    std::vector<std::pair<int32_t, int32_t>> sequences;
    int64_t tokens = 0;
    const int64_t num_seqs = random.Int(0, 30);
    for (int64_t s = 0; s < num_seqs; ++s) {
      const auto context = static_cast<int32_t>(random.Int(1, 4096));
      const int64_t most = std::min<int64_t>(context, config.limits.max_tokens - tokens);
      const auto num_new =
          static_cast<int32_t>(std::min(most, random.Int(0, 2) == 0 ? random.Int(0, 100) : 1));
      tokens += num_new;
      sequences.emplace_back(num_new, context);
    }
    const Step step(sequences);
    ExpectWhole(config, step, MustPlan(config, step.View()));
  }
}

TEST(AttentionPlan, GraphsHaveAUnitForEveryPaddingSequence) {
  AttentionPlanConfig config = SomeConfig();
  config.group = 20;  // two tasks for each sequence
  const Step step({{1, 300}, {1, 20}});
  const Plan plan = MustPlan(config, step.View(/*graph_seqs=*/5));
  EXPECT_EQ(plan.summary.num_tokens, 5);
  EXPECT_EQ(plan.summary.num_units[1], 0);
  int num_padding = 0;
  int num_rows = 0;
  for (const AttentionTask& task : plan.Tasks()) {
    if (task.num_segments > 0) continue;
    ++num_padding;
    num_rows += task.num_rows;
    EXPECT_EQ(task.num_units, 1);
    EXPECT_GE(task.token_begin, 2);
  }
  EXPECT_EQ(num_padding, 6);
  EXPECT_EQ(num_rows, 60);
  EXPECT_LE(plan.summary.num_units[0],
            AttentionPlanner::Create(config)->MaxGraphUnits(/*graph_seqs=*/5));
}

TEST(AttentionPlan, StepsBeyondTheLimitsAreRefused) {
  const AttentionPlanConfig config = SomeConfig();
  EXPECT_THAT(Complaint(config, Step({{513, 513}}).View()), HasSubstr("ends with 513"));
  EXPECT_THAT(Complaint(config, Step({{2, 1}}).View()),
              HasSubstr("sequence 0 has 2 new tokens, the limit is its context, 1"));
  EXPECT_THAT(Complaint(config, Step({{1, 4097}}).View()),
              HasSubstr("sequence 0 has 257 blocks, the limit is 256"));
  EXPECT_THAT(Complaint(config, Step(std::vector<std::pair<int32_t, int32_t>>(65, {1, 1})).View()),
              HasSubstr("num_seqs is 65, the limit is 64"));
  EXPECT_THAT(Complaint(config, Step({{1, 1}}).View(/*graph_seqs=*/65)),
              HasSubstr("num_seqs is 65"));
  EXPECT_THAT(Complaint(config, Step({{1, 1}, {1, 1}}).View(/*graph_seqs=*/1)),
              HasSubstr("graph_seqs is 1, the limits are 2"));
  EXPECT_THAT(Complaint(config, Step({{2, 2}}).View(/*graph_seqs=*/4)),
              HasSubstr("sequence 0 has 2 new tokens, a graph's have 1"));
  Step step({{1, 40}});
  step.block_tables[1] = -1;
  EXPECT_THAT(Complaint(config, step.View()), HasSubstr("block 1 of sequence 0 is -1"));
  step = Step({{1, 40}});
  step.query_start[0] = 1;
  EXPECT_THAT(Complaint(config, step.View()), HasSubstr("query_start begins with 1"));
}

TEST(AttentionPlan, LimitsBeyondIndicesAreRefused) {
  AttentionPlanConfig config = SomeConfig();
  config.limits.max_seqs = 0;
  EXPECT_THAT(Complaint(config, {}), HasSubstr("max_seqs 0"));
  config = SomeConfig();
  config.limits.max_blocks_per_seq = int64_t{1} << 40;
  EXPECT_THAT(Complaint(config, {}), HasSubstr("the limit is 16777216"));
  config = SomeConfig();
  config.limits.max_blocks_per_seq = int64_t{1} << 23;
  config.limits.max_seqs = int64_t{1} << 20;
  EXPECT_THAT(Complaint(config, {}), HasSubstr("the limit is 2147483647"));
}

}  // namespace
}  // namespace nibble::kernels::cuda
