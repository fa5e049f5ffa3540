// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Decides what each step computes. Pure and deterministic: no device, no clock, no randomness; the
// same calls give the same plans.
//
//   scheduler.Add(spec);
//   ScheduledStep step = scheduler.Plan();
//   std::vector<TokenUpdate> updates = scheduler.Update(step, output);   // of executing step.plan
//
// Policy. Sequences are served by (priority, arrival). A step holds every running sequence that
// decodes, then, under the token budget, chunks of running sequences whose prompt is not computed
// yet, then newly admitted ones. A sequence is admitted with blocks for all tokens it has, so only
// decoding needs blocks later. When there are none, the running sequence that is last in (priority,
// arrival) gives all its blocks back and waits again with its tokens kept ("preemption by
// recompute"); its arrival puts it before everything that came later. A step that preempts admits
// nobody, and while others run an admission leaves one free block for each of them, so that the
// blocks just won are not lost to the next decode.
//
// Invariants (CheckInvariants):
//   1. A sequence is either waiting or running; both lists are in (priority, arrival) order.
//   2. Waiting sequences hold no blocks and have no computed tokens.
//   3. A running sequence's table holds all its computed tokens, and at least one token is not
//      computed.
//   4. Running sequences are at most max_num_seqs; a plan's tokens at most max_num_batched_tokens.
//   5. The pool's used blocks are exactly those of the running sequences' tables.
//   6. A plan is empty only when there is no sequence: the first in order can always go on, because
//      every sequence fits the pool alone (Add's requirement).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/cache/block_pool.h"
#include "engine/request/request.h"
#include "engine/scheduler/plan_builder.h"
#include "engine/scheduler/sequence.h"
#include "engine/scheduler/step_plan.h"
#include "engine/scheduler/token_update.h"

namespace nibble::engine {

struct SchedulerConfig {
  int64_t max_num_seqs = 64;
  int64_t max_num_batched_tokens = 2048;  // >= max_num_seqs
  int64_t num_blocks = 0;
  int64_t block_size = 16;
  int64_t max_model_len = 0;  // <= num_blocks * block_size
  // false: needs max_num_batched_tokens >= max_model_len, or a recomputed sequence could get too
  // long for one step.
  bool enable_chunked_prefill = true;
  bool enable_prefix_caching = true;
  std::vector<int32_t> eos_token_ids;
};

// A plan and what the scheduler and its owner must know of it.
struct ScheduledStep {
  struct Entry {
    RequestId id = 0;
    int64_t num_tokens = 0;
    bool samples = false;
  };
  struct Admission {
    RequestId id = 0;
    int64_t num_cached_tokens = 0;  // of the prompt
  };

  StepPlan plan;
  std::vector<Entry> entries;         // as the plan's sequences
  std::vector<Admission> first_time;  // sequences that never ran before
  int64_t num_prompt_tokens = 0;      // scheduled tokens that are prompt tokens
  int64_t num_preemptions = 0;
  int64_t prefix_cache_queries = 0;  // prompt tokens of first_time
  int64_t prefix_cache_hits = 0;

  bool empty() const { return entries.empty(); }
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerConfig& config);

  // Queues a sequence. REQUIRES an id not in use, a prompt of at least one token, and prompt and
  // max_tokens together within max_model_len.
  void Add(SequenceSpec spec);

  // Ends a sequence and frees its blocks; may come while a plan that holds it executes (the step's
  // result for it is dropped, and its blocks are not given out before the next Plan()). False when
  // there is none with this id.
  bool Finish(RequestId id);

  // The next step. Empty only when no sequence is left.
  ScheduledStep Plan();

  // Takes the tokens of an executed step: one update for each sampling row whose sequence is still
  // there, in the plan's order. A row without a finite logit ends its sequence with kError.
  // REQUIRES output.tokens as many as plan.num_samples(), and no Plan() between.
  std::vector<TokenUpdate> Update(const ScheduledStep& step, const StepOutput& output);

  // The executor lost its KV cache: running sequences give their blocks back and wait again, with
  // their tokens and in their order, and no prefix is cached any more. The step that was planned
  // last is not to be given to Update(). Returns how many sequences must be recomputed.
  int64_t LoseKvCache();

  int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  bool empty() const { return sequences_.empty(); }
  const BlockPool& pool() const { return pool_; }

  // Aborts when an invariant does not hold: for tests.
  void CheckInvariants() const;

 private:
  using Order = std::pair<int32_t, uint64_t>;  // priority, arrival
  static Order OrderOf(const Sequence& sequence) { return {sequence.priority, sequence.arrival}; }

  // The step being planned.
  struct Draft {
    std::vector<Chunk> chunks;
    int64_t budget = 0;  // tokens left
    ScheduledStep step;
  };

  void ScheduleDecodes(Draft* draft);
  void SchedulePrefills(Draft* draft);
  void AdmitWaiting(Draft* draft);
  bool Admit(Sequence* sequence, Draft* draft);
  void Schedule(const Sequence& sequence, int64_t num_tokens, Draft* draft);
  bool ReserveForDecode(Sequence* sequence, Draft* draft);
  void PreemptLast();
  void CheckEnd(const Sequence& sequence, TokenUpdate* update) const;
  void Remove(Sequence* sequence);

  SchedulerConfig config_;
  BlockPool pool_;
  uint64_t next_arrival_ = 0;
  std::unordered_map<RequestId, std::unique_ptr<Sequence>> sequences_;
  std::map<Order, Sequence*> waiting_;
  std::vector<Sequence*> running_;  // in order
};

}  // namespace nibble::engine
