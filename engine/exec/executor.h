// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Runs step plans on a model: in this process (LocalExecutor) or on a group of ranks.
#pragma once

#include <cstdint>

#include "base/status.h"
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
  // Computes the plan and samples its tokens. Called from one thread at a time. UNAVAILABLE means
  // that the step was not done and what the KV blocks held is lost, but the executor may come back:
  // Ready() tells. Blocks are never lost silently: a loss between two steps is told by the next
  // call, even when the executor is ready again by then. Any other error means that no later step
  // will be done either: the engine fails all requests and stops being ready.
  virtual absl::StatusOr<StepOutput> Execute(const StepPlan& plan) = 0;
  // OK when Execute can be called. UNAVAILABLE, naming what is missing, while a group of ranks
  // forms anew; any other error is final. Thread-safe, never blocks.
  virtual absl::Status Ready() const { return absl::OkStatus(); }
};

}  // namespace nibble::engine
