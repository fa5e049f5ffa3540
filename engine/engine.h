// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The engine: requests in, tokens out. One thread loops over
//   take what arrived -> Scheduler::Plan() -> Executor -> Scheduler::Update() -> hand out deltas
// with as many steps in flight as the executor takes.
//
//   auto engine = Engine::Create(config, std::move(executor), &tokenizer, &observer);
//   auto ids = (*engine)->Submit({request});
//   ... request.sink gets RequestOutput deltas from the engine thread ...
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "engine/exec/executor.h"
#include "engine/heartbeat.h"
#include "engine/request/request.h"
#include "engine/tokenizer/tokenizer.h"

namespace nibble::engine {

struct EngineConfig {
  int64_t max_num_seqs = 64;              // sequences per step, 1..4096
  int64_t max_num_batched_tokens = 2048;  // token budget of a step, >= max_num_seqs
  int64_t max_queued_requests = 1024;     // waiting; beyond it Submit answers RESOURCE_EXHAUSTED
  bool enable_chunked_prefill =
      true;  // false: a prompt is computed in one step (needs the budget to hold it)
  bool enable_prefix_caching = true;
  SamplingLimits sampling_limits;      // vocab_size and max_model_len are filled from the executor
  std::vector<int32_t> eos_token_ids;  // tokens that end a sequence unless ignore_eos
  // How long requests wait for an executor that is not ready (a group of ranks that lost one); > 0,
  // at most a year.
  int64_t group_timeout_ns = 60'000'000'000;
  uint64_t seed = 0;  // seeds of requests that bring none are drawn from this

  // All violations at once.
  absl::Status Validate() const;
};

// A moment's state. kv_blocks_used counts blocks held by sequences; blocks kept only by the prefix
// cache are free.
struct EngineStats {
  int64_t num_running = 0;
  int64_t num_waiting = 0;
  int64_t kv_blocks_total = 0;
  int64_t kv_blocks_used = 0;
  int64_t num_steps = 0;
  int64_t last_step_ns = 0;  // Clock time when the last step ended
  // Since the start: how often the executor lost its KV cache (a rank died), and how many running
  // sequences had to be recomputed for that.
  int64_t num_outages = 0;
  int64_t num_lost_sequences = 0;
};

struct StepStats {
  EngineStats engine;
  int64_t num_prompt_tokens = 0;  // prompt tokens computed in this step, recomputed ones too
  int64_t num_generated_tokens = 0;
  // Of the sequences that got their first token in this step: their whole prompts, and what of them
  // was found in the prefix cache. Each prompt counts once, however often it is recomputed.
  int64_t num_prefilled_tokens = 0;
  int64_t num_prefilled_cached_tokens = 0;
  int64_t num_preemptions = 0;
  int64_t prefix_cache_queries = 0;         // tokens
  int64_t prefix_cache_hits = 0;            // tokens
  double step_seconds = 0.0;                // plan to tokens; steps in flight overlap
  std::vector<double> inter_token_seconds;  // one per generated token after a sequence's first
  std::vector<double>
      time_to_first_token_seconds;  // one per sequence that got its first token in this step
};

// Times of one finished request, from one monotonic clock: queue = queued -> first scheduled,
// prefill = scheduled -> first token, decode = first -> last token, inference = scheduled -> last
// token.
struct FinishedRequestStats {
  FinishReason reason = FinishReason::kStop;
  int64_t num_prompt_tokens = 0;
  int64_t num_cached_tokens = 0;
  int64_t num_generated_tokens = 0;
  int64_t max_tokens = 0;
  double e2e_seconds = 0.0;
  double queue_seconds = 0.0;
  double prefill_seconds = 0.0;
  double decode_seconds = 0.0;
  double inference_seconds = 0.0;
};

// Called from the engine thread; must not block.
class EngineObserver {
 public:
  virtual ~EngineObserver() = default;
  virtual void OnStep(const StepStats& stats) = 0;
  virtual void OnFinished(const FinishedRequestStats& stats) = 0;
};

class Engine {
 public:
  // Starts the engine thread. `tokenizer`, `observer` (may be null) and `clock` must outlive the
  // engine.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const EngineConfig& config,
                                                        std::unique_ptr<Executor> executor,
                                                        const Tokenizer* tokenizer,
                                                        EngineObserver* observer,
                                                        const Clock* clock = &Clock::Monotonic());
  virtual ~Engine() = default;  // Stop()s

  // Queues the requests, all or none, in order. INVALID_ARGUMENT (a field, or a prompt that does
  // not fit), RESOURCE_EXHAUSTED (queue full), UNAVAILABLE (draining, stopped, failed, or an outage
  // that has lasted for group_timeout_ns). After an error the sinks get nothing. Thread-safe, never
  // blocks on a step.
  virtual absl::StatusOr<std::vector<RequestId>> Submit(std::vector<EngineRequest> requests) = 0;

  // Ends a request: its sink gets the tokens computed so far, then a last delta with kAbort (unless
  // one of those tokens ended it), its KV blocks are free before the next step. Unknown or finished
  // ids are ignored. Thread-safe; may be called from a sink.
  virtual void Cancel(RequestId id) = 0;

  virtual EngineStats Stats() const = 0;
  virtual const EngineConfig& config() const = 0;
  // OK, or why the engine does not serve: UNAVAILABLE while the executor is not ready, naming what
  // is missing; what failed when it never will be again.
  virtual absl::Status Health() const = 0;
  // What it is at. Takes no lock: an answer is certain whatever hangs. During an outage, which
  // Health() tells, no step is possible and the wait goes on.
  virtual EngineProgress Progress() const = 0;

  // No new requests from now on; returns when all are finished or `timeout_ns` is over
  // (DEADLINE_EXCEEDED).
  virtual absl::Status Drain(int64_t timeout_ns) = 0;
  // Aborts what is left (sinks get kAbort) and joins the thread. Idempotent.
  virtual void Stop() = 0;
};

}  // namespace nibble::engine
