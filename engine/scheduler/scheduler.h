// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Decides what each step computes. Pure and deterministic: no device, no clock, no randomness; the
// same calls give the same plans.
//
//   scheduler.Add(spec);
//   ScheduledStep step = scheduler.Plan();
//   std::vector<TokenUpdate> updates = scheduler.Update(step, output);   // of executing step.plan
//
// Up to max_steps_in_flight steps may be planned before the first of them is given to Update().
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
// Several steps in flight. The stages of a pipeline work at once when each has a step, so running
// sequences and prompts are spread over the P = max_steps_in_flight steps:
// - A step takes at most 1/P of the sequences that decode, and at most what leaves as many for each
//   step that can be planned before one is done. Nothing is lost with smaller batches: a round of P
//   of them takes as long as the way of one of all sequences through P stages, or less.
// - A step takes 1/(4 P) of the prompt tokens that are to be computed, running and waiting, so that
//   filling and emptying the pipeline costs a fraction (P - 1)/(4 P) of a prompt's time; but no
//   less than min_share_tokens, below which a stage is busy with its weights rather than with
//   tokens.
// - A sequence whose token is being sampled is not planned. The next chunk of a prompt is planned
//   right behind the one before.
//
// Every stage computes the steps in the order of Plan(). A block that is freed (by a preemption, a
// cancellation, an end) while steps in flight still read or write it may be given to the next plan
// at once: wherever that plan's step writes the block, the steps before it are through with it. For
// the same reason blocks could be published when they are planned; they are published when they are
// computed, as with one step, so that nothing of a faulty or lost step is ever found. The price is
// that copies of one prompt share only when they come P steps apart.
//
// A sequence that is preempted while its token is being sampled waits for that token before it is
// admitted again, so that no token is lost or sampled twice.
//
// Invariants (CheckInvariants):
//   1. A sequence is either waiting or running; both lists are in (priority, arrival) order.
//   2. Waiting sequences hold no blocks and have no computed or planned tokens.
//   3. A running sequence's table holds all its planned tokens; computed ones are among them, and
//      published ones among those. It awaits a token if and only if all its tokens are planned.
//   4. Running sequences are at most max_num_seqs; a plan's tokens at most max_num_batched_tokens.
//   5. The pool's used blocks are exactly those of the running sequences' tables.
//   6. With no step in flight nobody awaits a token and all planned tokens are computed, and a plan
//      is empty only when there is no sequence: the first in order can always go on, because every
//      sequence fits the pool alone (Add's requirement).
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
  int64_t max_steps_in_flight = 1;  // planned and not given to Update(); >= 1
  int64_t min_share_tokens = 128;   // prompt tokens of a step when several are in flight; >= 1
};

// A plan and what the scheduler and its owner must know of it.
struct ScheduledStep {
  struct Entry {
    RequestId id = 0;
    uint64_t admission = 0;  // Sequence::admission
    int64_t num_tokens = 0;
    bool samples = false;
  };
  struct Admission {
    RequestId id = 0;
    int64_t num_cached_tokens = 0;  // of the prompt
  };

  uint64_t number = 0;  // in the order of Plan(); empty ones do not count
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

  // Ends a sequence and frees its blocks; may come while plans that hold it execute (the steps'
  // results for it are dropped, and its blocks are not given out before the next Plan()). False
  // when there is none with this id.
  bool Finish(RequestId id);

  // The next step. Empty when no sequence is left, or when none can go on before a step in flight
  // is done. REQUIRES fewer than max_steps_in_flight in flight, unless no sequence is left.
  ScheduledStep Plan();

  // Takes the tokens of an executed step: one update for each sampling row whose sequence is still
  // there, in the plan's order. A row without a finite logit ends its sequence with kError.
  // REQUIRES the oldest step in flight, and output.tokens as many as plan.num_samples().
  std::vector<TokenUpdate> Update(const ScheduledStep& step, const StepOutput& output);

  // The executor lost its KV cache: running sequences give their blocks back and wait again, with
  // their tokens and in their order, and no prefix is cached any more. The steps in flight are
  // not to be given to Update(). Returns of how many sequences something was computed.
  int64_t LoseKvCache();

  int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t num_steps_in_flight() const { return num_steps_in_flight_; }
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
    int64_t budget = 0;         // tokens left
    int64_t prompt_budget = 0;  // of these, for prompts; without chunked prefill the last prompt
                                // may exceed it
    ScheduledStep step;
  };

  void ScheduleDecodes(Draft* draft);
  void SchedulePrefills(Draft* draft);
  void AdmitWaiting(Draft* draft);
  bool Admit(Sequence* sequence, Draft* draft);
  int64_t DecodeShare() const;
  int64_t PromptShare(int64_t budget) const;
  void SchedulePrompt(Sequence* sequence, Draft* draft);
  void Schedule(Sequence* sequence, int64_t num_tokens, Draft* draft);
  bool ReserveForDecode(Sequence* sequence, Draft* draft);
  void PreemptLast();
  void CheckEnd(const Sequence& sequence, TokenUpdate* update) const;
  void Remove(Sequence* sequence);

  SchedulerConfig config_;
  BlockPool pool_;
  uint64_t next_arrival_ = 0;
  uint64_t num_admissions_ = 0;
  uint64_t num_steps_ = 0;  // planned
  int64_t num_steps_in_flight_ = 0;
  std::unordered_map<RequestId, std::unique_ptr<Sequence>> sequences_;
  std::map<Order, Sequence*> waiting_;
  std::vector<Sequence*> running_;  // in order
};

}  // namespace nibble::engine
