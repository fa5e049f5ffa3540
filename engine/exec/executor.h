// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Runs step plans on a model: in this process (LocalExecutor) or on a group of ranks.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "engine/moe/expert_load.h"
#include "engine/scheduler/step_plan.h"

namespace nibble::engine {

// What the scheduler has to know of the device.
struct ExecutorLimits {
  int64_t num_blocks = 0;     // KV blocks
  int64_t block_size = 16;    // token positions per block
  int64_t max_model_len = 0;  // tokens of a sequence, prompt and answer
  int64_t vocab_size = 0;
};

class Executor {
 public:
  virtual ~Executor() = default;
  virtual ExecutorLimits limits() const = 0;
  // Steps that may be under way at once: as many as the model has pipeline stages; constant. Their
  // sequences are disjoint but for chunks of one prompt. They are computed in the order of Begin by
  // every stage, so that a step may be given KV blocks that one before it still uses.
  virtual int max_steps_in_flight() const { return 1; }

  // Begins to compute a plan, which must stay as it is until its Finish() returned. REQUIRES fewer
  // than max_steps_in_flight() under way. Called from one thread at a time; another one may be in
  // Finish() meanwhile. After an error (as Finish's) the step was not begun.
  virtual absl::Status Begin(const StepPlan& plan) = 0;
  // Blocks until the oldest step under way is done, and gives its tokens. Called from one thread at
  // a time. UNAVAILABLE means that no step under way will be done and what the KV blocks held is
  // lost, but the executor may come back: Ready() tells. Blocks are never lost silently: a loss
  // between two steps is told by the next call, even when the executor is ready again by then. Any
  // other error means that no later step will be done either: the engine fails all requests and
  // stops being ready. After an error nothing is under way.
  // Called once for every Begin() that succeeded. With several steps under way a caller may not
  // know yet that an error has ended them all (another thread's call was told): with nothing under
  // way Finish() returns an error at once.
  virtual absl::StatusOr<StepOutput> Finish() = 0;
  // Both, for callers with one step at a time.
  absl::StatusOr<StepOutput> Execute(const StepPlan& plan);

  // OK when Begin can be called. UNAVAILABLE, naming what is missing, while a group of ranks
  // forms anew; any other error is final. Thread-safe, never blocks.
  virtual absl::Status Ready() const { return absl::OkStatus(); }

  // Tokens that went to each expert so far, of the whole model; empty for a dense one. Ranks tell
  // theirs about once a second. Thread-safe, never blocks.
  virtual ExpertLoad expert_load() const { return {}; }
};

}  // namespace nibble::engine
