// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Which blocks of the grid do what in one step: host code, tested without a device.
//
// A task is up to `narrow_rows` or `wide_rows` rows of one sequence: a row is one query head of one
// token, those of a KV head lie together (row = token * group + head in the group). Every task is
// done for every KV head. Positions are cut into segments at absolute multiples of `segment_keys`;
// a unit is a run of a task's segments, done by one block. A task of one unit writes its output;
// one of several leaves a state for each segment, and whoever finishes last merges them in
// ascending order. The order of additions follows from the segments alone, so how tasks are split
// into units shows in no bit.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "kernels/attention/cuda/paged_attention.h"

namespace nibble::kernels::cuda {

struct AttentionPlanConfig {
  int64_t group = 1;  // query heads of a KV head
  int64_t num_kv_heads = 1;
  int64_t block_size = 16;
  AttentionLimits limits;
  int64_t segment_keys = 512;
  int64_t narrow_rows = 16;
  int64_t wide_rows = 0;       // of tasks of long chunks; 0: all are narrow
  int64_t target_units = 1;    // of all KV heads: what keeps the device busy
  int64_t max_state_rows = 0;  // of a KV head
};

// What kernels read. Offsets count int32 from the plan's beginning.
struct alignas(16) AttentionPlanHeader {
  int32_t num_units[2];  // narrow, wide
  int32_t units_begin[2];
  int32_t tasks_begin;
  int32_t padding[3];
};
struct alignas(16) AttentionTask {
  int32_t token_begin;     // row of q and out of the sequence's first new token
  int32_t first_position;  // of that token
  int32_t row_begin;       // of the sequence's rows of a KV head
  int32_t num_rows;
  int32_t table_begin;   // of the sequence's block table
  int32_t num_segments;  // from position 0; 0: a sequence that is padding, whose output is zeros
  int32_t num_units;
  int32_t state_begin;  // num_segments * num_rows states of each KV head, if num_units > 1
};
struct alignas(16) AttentionUnit {
  int32_t task;
  int32_t segment_begin;
  int32_t segment_end;
  int32_t padding;
};

struct AttentionPlanSummary {
  int64_t num_ints = 0;  // of the plan
  int64_t num_units[2] = {0, 0};
  int64_t num_tokens = 0;
  int32_t max_block = -1;  // the largest block id
};

class AttentionPlanner {
 public:
  // INVALID_ARGUMENT for limits beyond what int32 indices reach.
  static absl::StatusOr<AttentionPlanner> Create(const AttentionPlanConfig& config);

  int64_t max_ints() const { return max_ints_; }
  int64_t max_tasks() const { return max_tasks_; }
  int64_t max_segments() const;  // of a sequence
  // Units of a step of `graph_seqs` tokens, at most.
  int64_t MaxGraphUnits(int64_t graph_seqs) const;

  // Writes a plan of at most max_ints() to `out`, aligned to 16 bytes. INVALID_ARGUMENT for a step
  // beyond the limits or one that contradicts itself. Does not allocate after a first step.
  absl::StatusOr<AttentionPlanSummary> Write(const AttentionStep& step, int32_t* out);

 private:
  absl::Status CheckStep(const AttentionStep& step) const;
  void MakeTasks(const AttentionStep& step);
  void MakeUnits();

  AttentionPlanConfig config_;
  int64_t max_ints_ = 0;
  int64_t max_tasks_ = 0;
  // Of the step that is being planned.
  std::vector<AttentionTask> tasks_;
  std::vector<bool> is_wide_;         // of tasks
  std::vector<int32_t> table_begin_;  // of sequences
  std::vector<int32_t> order_;        // of tasks, most segments first
  std::vector<AttentionUnit> units_[2];
};

}  // namespace nibble::kernels::cuda
