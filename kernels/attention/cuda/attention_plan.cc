// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/attention/cuda/attention_plan.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

namespace nibble::kernels::cuda {
namespace {

constexpr int64_t kAlignInts = 4;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t Aligned(int64_t ints) { return CeilDiv(ints, kAlignInts) * kAlignInts; }
template <typename T>
constexpr int64_t kInts = static_cast<int64_t>(sizeof(T) / sizeof(int32_t));

}  // namespace

absl::StatusOr<AttentionPlanner> AttentionPlanner::Create(const AttentionPlanConfig& config) {
  AttentionPlanner planner;
  planner.config_ = config;
  const AttentionLimits& limits = config.limits;
  if (limits.max_tokens < 1 || limits.max_seqs < 1 || limits.max_blocks_per_seq < 1) {
    return InvalidArgument(
        "attention: max_tokens {}, max_seqs {} and max_blocks_per_seq {}: the least is 1",
        limits.max_tokens, limits.max_seqs, limits.max_blocks_per_seq);
  }
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
  constexpr int64_t kMaxSide = int64_t{1} << 24;  // no product of two overflows
  if (limits.max_tokens > kMaxSide || limits.max_seqs > kMaxSide ||
      limits.max_blocks_per_seq > kMaxSide || config.group > kMaxSide ||
      config.block_size > kMaxSide) {
    return InvalidArgument(
        "attention: max_tokens {}, max_seqs {}, max_blocks_per_seq {}, block_size {}: the limit is "
        "{}",
        limits.max_tokens, limits.max_seqs, limits.max_blocks_per_seq, config.block_size, kMaxSide);
  }
  // A sequence's rows leave at most one task that is not full.
  planner.max_tasks_ = limits.max_tokens * config.group / config.narrow_rows +
                       std::min(limits.max_seqs, limits.max_tokens);
  // Splitting adds a unit for each of the target, and one for each task at most.
  const int64_t max_units = 2 * planner.max_tasks_ + config.target_units;
  planner.max_ints_ = kInts<AttentionPlanHeader> + planner.max_tasks_ * kInts<AttentionTask> +
                      max_units * kInts<AttentionUnit> +
                      Aligned(limits.max_seqs * limits.max_blocks_per_seq);
  const int64_t max_positions = limits.max_blocks_per_seq * config.block_size;
  if (planner.max_ints_ > kMax || max_positions > kMax - config.segment_keys ||
      max_units * config.num_kv_heads > kMax) {
    return InvalidArgument(
        "attention: {} tasks, {} integers of a plan and {} positions, the limit is {}",
        planner.max_tasks_, planner.max_ints_, max_positions, kMax);
  }
  return planner;
}

int64_t AttentionPlanner::max_segments() const {
  return CeilDiv(config_.limits.max_blocks_per_seq * config_.block_size, config_.segment_keys);
}

int64_t AttentionPlanner::MaxGraphUnits(int64_t graph_seqs) const {
  return graph_seqs * CeilDiv(config_.group, config_.narrow_rows) * max_segments();
}

absl::Status AttentionPlanner::CheckStep(const AttentionStep& step) const {
  const AttentionLimits& limits = config_.limits;
  const int64_t num_rows = std::max(step.num_seqs, step.graph_seqs);
  if (step.num_seqs < 0 || num_rows > limits.max_seqs) {
    return InvalidArgument("attention: num_seqs is {}, the limit is {}", num_rows, limits.max_seqs);
  }
  if (step.graph_seqs != 0 &&
      (step.graph_seqs < step.num_seqs || step.graph_seqs > limits.max_tokens)) {
    return InvalidArgument("attention: graph_seqs is {}, the limits are {} and {}", step.graph_seqs,
                           step.num_seqs, limits.max_tokens);
  }
  if (step.num_seqs == 0) return absl::OkStatus();
  if (step.query_start[0] != 0 || step.query_start[step.num_seqs] > limits.max_tokens) {
    return InvalidArgument(
        "attention: query_start begins with {} and ends with {}, the limits are 0 and {}",
        step.query_start[0], step.query_start[step.num_seqs], limits.max_tokens);
  }
  for (int64_t seq = 0; seq < step.num_seqs; ++seq) {
    const int64_t num_new = int64_t{step.query_start[seq + 1]} - step.query_start[seq];
    const int64_t context = step.context_lens[seq];
    if (num_new < 0 || num_new > context) {
      return InvalidArgument(
          "attention: sequence {} has {} new tokens, the limit is its context, {}", seq, num_new,
          context);
    }
    if (step.graph_seqs != 0 && num_new != 1) {
      return InvalidArgument("attention: sequence {} has {} new tokens, a graph's have 1", seq,
                             num_new);
    }
    const int64_t num_blocks = CeilDiv(context, config_.block_size);
    const int64_t max_blocks = std::min(step.max_blocks_per_seq, limits.max_blocks_per_seq);
    if (num_blocks > max_blocks) {
      return InvalidArgument("attention: sequence {} has {} blocks, the limit is {}", seq,
                             num_blocks, max_blocks);
    }
  }
  return absl::OkStatus();
}

void AttentionPlanner::MakeTasks(const AttentionStep& step) {
  tasks_.clear();
  is_wide_.clear();
  for (int64_t seq = 0; seq < step.num_seqs; ++seq) {
    const int64_t num_new = step.query_start[seq + 1] - step.query_start[seq];
    const int64_t num_rows = num_new * config_.group;
    const bool wide = config_.wide_rows > 0 && num_new > 1 && num_rows > config_.narrow_rows;
    const int64_t task_rows = wide ? config_.wide_rows : config_.narrow_rows;
    const int64_t first_position = step.context_lens[seq] - num_new;
    for (int64_t row = 0; row < num_rows; row += task_rows) {
      const int64_t end = std::min(num_rows, row + task_rows);
      const int64_t last_position = first_position + (end - 1) / config_.group;
      tasks_.push_back(
          {.token_begin = step.query_start[seq],
           .first_position = static_cast<int32_t>(first_position),
           .row_begin = static_cast<int32_t>(row),
           .num_rows = static_cast<int32_t>(end - row),
           .table_begin = static_cast<int32_t>(seq),  // an offset when all is placed
           .num_segments = static_cast<int32_t>(last_position / config_.segment_keys + 1),
           .num_units = 1});
      is_wide_.push_back(wide);
    }
  }
  for (int64_t seq = step.num_seqs; seq < step.graph_seqs; ++seq) {
    for (int64_t row = 0; row < config_.group; row += config_.narrow_rows) {
      tasks_.push_back(
          {.token_begin = static_cast<int32_t>(seq),
           .row_begin = static_cast<int32_t>(row),
           .num_rows = static_cast<int32_t>(std::min(config_.group - row, config_.narrow_rows)),
           .num_units = 1});
      is_wide_.push_back(false);
    }
  }
}

void AttentionPlanner::MakeUnits() {
  order_.resize(tasks_.size());
  std::iota(order_.begin(), order_.end(), 0);
  std::sort(order_.begin(), order_.end(), [&](int32_t a, int32_t b) {
    const int32_t more = tasks_[static_cast<size_t>(a)].num_segments;
    const int32_t less = tasks_[static_cast<size_t>(b)].num_segments;
    return more != less ? more > less : a < b;
  });
  int64_t total = 0;
  for (const AttentionTask& task : tasks_) total += task.num_segments;
  const int64_t target = std::max<int64_t>(1, config_.target_units / config_.num_kv_heads);
  const auto run = static_cast<int32_t>(std::max<int64_t>(1, CeilDiv(total, target)));

  for (auto& units : units_) units.clear();
  int64_t num_states = 0;
  for (const int32_t i : order_) {
    AttentionTask& task = tasks_[static_cast<size_t>(i)];
    auto& units = units_[is_wide_[static_cast<size_t>(i)] ? 1 : 0];
    const int64_t states = int64_t{task.num_segments} * task.num_rows;
    if (task.num_segments <= run || num_states + states > config_.max_state_rows) {
      units.push_back({.task = i, .segment_begin = 0, .segment_end = task.num_segments});
      continue;
    }
    task.state_begin = static_cast<int32_t>(num_states);
    num_states += states;
    task.num_units = static_cast<int32_t>(CeilDiv(task.num_segments, run));
    for (int32_t begin = 0; begin < task.num_segments; begin += run) {
      units.push_back({.task = i,
                       .segment_begin = begin,
                       .segment_end = std::min(begin + run, task.num_segments)});
    }
  }
}

absl::StatusOr<AttentionPlanSummary> AttentionPlanner::Write(const AttentionStep& step,
                                                             int32_t* out) {
  NIBBLE_RETURN_IF_ERROR(CheckStep(step));
  MakeTasks(step);
  MakeUnits();

  AttentionPlanSummary summary;
  AttentionPlanHeader header{};
  int64_t at = kInts<AttentionPlanHeader>;
  header.tasks_begin = static_cast<int32_t>(at);
  at += static_cast<int64_t>(tasks_.size()) * kInts<AttentionTask>;
  for (size_t kind = 0; kind < 2; ++kind) {
    const auto num_units = static_cast<int64_t>(units_[kind].size());
    summary.num_units[kind] = num_units;
    header.num_units[kind] = static_cast<int32_t>(num_units);
    header.units_begin[kind] = static_cast<int32_t>(at);
    std::copy(units_[kind].begin(), units_[kind].end(), reinterpret_cast<AttentionUnit*>(out + at));
    at += num_units * kInts<AttentionUnit>;
  }
  std::memcpy(out, &header, sizeof(header));

  // Of each table what its sequence uses.
  table_begin_.clear();
  for (int64_t seq = 0; seq < step.num_seqs; ++seq) {
    const int64_t num_blocks = CeilDiv(step.context_lens[seq], config_.block_size);
    const int32_t* table = step.block_tables + seq * step.max_blocks_per_seq;
    for (int64_t i = 0; i < num_blocks; ++i) {
      if (table[i] < 0) {
        return InvalidArgument("attention: block {} of sequence {} is {}, the least is 0", i, seq,
                               table[i]);
      }
      summary.max_block = std::max(summary.max_block, table[i]);
      out[at + i] = table[i];
    }
    table_begin_.push_back(static_cast<int32_t>(at));
    at += num_blocks;
  }
  for (AttentionTask& task : tasks_) {
    if (task.num_segments > 0)
      task.table_begin = table_begin_[static_cast<size_t>(task.table_begin)];
  }
  std::copy(tasks_.begin(), tasks_.end(),
            reinterpret_cast<AttentionTask*>(out + header.tasks_begin));
  summary.num_ints = at;
  summary.num_tokens = step.graph_seqs != 0 ? step.graph_seqs
                       : step.num_seqs > 0  ? step.query_start[step.num_seqs]
                                            : 0;
  return summary;
}

}  // namespace nibble::kernels::cuda
