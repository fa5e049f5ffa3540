// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The Engine: a mailbox that callers write, and one engine thread that owns everything else.
//
// One turn of the loop:
//   take the mailbox (arrivals, cancellations) -> Plan -> begin the step
//   -> meanwhile hand out the tokens of the last step that was done
//   -> when as many steps are in flight as the executor takes: wait for the oldest -> Update
// With fewer in flight and nothing to plan, the loop waits for the mailbox or the oldest step,
// whichever comes first. During an outage (the executor lost its KV cache and is not ready) only
// the mailbox is served.
//
// Invariants:
//   1. Only the engine thread touches scheduler_, active_, undelivered_, in_flight_ and the step
//      thread; only mutex_ guards the mailbox. No sink or observer is called under mutex_.
//   2. Every accepted request is in exactly one of mailbox_.arrivals and active_ until its sink got
//      its last delta; num_unfinished_ counts them.
//   3. A request in active_ is in the scheduler, or its last update is in undelivered_.
//   4. After a failed step health_ is not OK, and neither the scheduler nor active_ holds anything.
//   5. While the loop waits for the executor nothing runs, no block is used or cached, and
//      undelivered_ and in_flight_ are empty.
//   6. in_flight_ are the scheduler's steps in flight and those that the step thread was given, in
//      order; at most max_steps_in_flight_.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "engine/engine.h"
#include "engine/engine_step_thread.h"
#include "engine/heartbeat.h"
#include "engine/output/output_processor.h"
#include "engine/scheduler/scheduler.h"

namespace nibble::engine {

class EngineLoop final : public Engine {
 public:
  // REQUIRES a config that Engine::Create checked and completed.
  EngineLoop(EngineConfig config, const SchedulerConfig& scheduler_config,
             std::unique_ptr<Executor> executor, const Tokenizer* tokenizer,
             EngineObserver* observer, const Clock* clock);
  ~EngineLoop() override;

  absl::StatusOr<std::vector<RequestId>> Submit(std::vector<EngineRequest> requests) override;
  void Cancel(RequestId id) override;
  EngineStats Stats() const override;
  const EngineConfig& config() const override { return config_; }
  absl::Status Health() const override;
  EngineProgress Progress() const override { return heartbeat_.Read(); }
  absl::Status Drain(int64_t timeout_ns) override;
  void Stop() override;

 private:
  // A request between Submit and its last delta. Times are of clock_; -1: not yet.
  struct ActiveRequest {
    std::shared_ptr<OutputSink> sink;
    OutputProcessor output;
    int64_t num_prompt_tokens = 0;
    int64_t num_cached_tokens = 0;
    int64_t max_tokens = 0;
    int64_t queued_ns = 0;
    int64_t scheduled_ns = -1;
    int64_t first_token_ns = -1;
    int64_t last_token_ns = -1;
  };
  struct Arrival {
    SequenceSpec sequence;
    ActiveRequest request;
  };
  // From the loss of the KV cache to the next step that is done.
  struct Outage {
    int64_t since_ns = 0;
    bool waiting = true;  // for the executor to be ready
    absl::Status why;     // what is missing
  };
  struct StepInFlight {
    ScheduledStep step;
    int64_t start_ns = 0;
  };
  struct Mailbox {
    std::vector<Arrival> arrivals;
    std::vector<RequestId> cancellations;
    bool stopping = false;
  };

  // On the caller's thread.
  absl::Status Validate(const EngineRequest& request) const;
  Arrival Prepare(EngineRequest request) const;

  // On the engine thread.
  void Run();
  Mailbox TakeMailbox();
  void AcceptArrivals(std::vector<Arrival> arrivals);
  void Step();
  void BeginStep();
  void FinishOldestStep();
  void FailSteps(const absl::Status& status);
  void NoteAdmissions(const ScheduledStep& step, int64_t now_ns);
  void NoteTokens(const StepInFlight& done, const std::vector<TokenUpdate>& updates);
  absl::Status CheckOutput(const StepPlan& plan, const StepOutput& output) const;
  void DeliverTokens();
  void EndAll(FinishReason reason, const absl::Status& error);
  void EndWithoutFiniteLogit(RequestId id);
  void EndWithoutToken(RequestId id, FinishReason reason, const absl::Status& error);
  void EndRequest(std::map<RequestId, ActiveRequest>::iterator request, RequestOutput last);
  void FailEngine(const absl::Status& error);

  // engine_outage.cc, on the engine thread.
  void BeginOutage(const absl::Status& why);
  // Whether steps can be done. During an outage, asks the executor and ends requests that have
  // waited long enough.
  bool ReadyForSteps();
  bool HasWaitedTooLong() const;
  void EndWhatWaits();
  void PublishOutage();

  void PublishStats();

  EngineConfig config_;
  const Tokenizer* tokenizer_;
  EngineObserver* observer_;  // may be null
  const Clock* clock_;
  Heartbeat heartbeat_;

  // The engine thread's.
  Scheduler scheduler_;
  const size_t max_steps_in_flight_;
  std::deque<StepInFlight> in_flight_;  // oldest first; plans stay where they are
  // The scheduler had nothing to add to the steps in flight, and nothing has changed since.
  bool nothing_to_plan_ = false;
  std::map<RequestId, ActiveRequest> active_;
  std::vector<TokenUpdate> undelivered_;  // of the last step
  bool logged_no_finite_logit_ = false;
  std::optional<Outage> outage_;
  ScheduledStep lost_step_;  // counts that no step has told yet, for the next statistics
  EngineStats stats_;

  mutable std::mutex mutex_;
  std::condition_variable mail_came_;
  std::condition_variable request_left_;
  // Guarded by mutex_:
  Mailbox mailbox_;
  bool draining_ = false;
  absl::Status health_;
  absl::Status outage_status_;   // not OK while the loop waits for the executor
  bool outage_expired_ = false;  // it has lasted for the group timeout
  EngineStats published_stats_;
  RequestId next_id_ = 1;
  uint64_t num_drawn_seeds_ = 0;
  int64_t num_queued_ = 0;      // accepted, never scheduled: what max_queued_requests bounds
  int64_t num_unfinished_ = 0;  // accepted, last delta not handed out

  StepThread step_thread_;  // the engine thread's; after what it wakes the loop with

  std::mutex stop_mutex_;  // makes Stop() idempotent across threads; guards thread_'s join
  std::thread thread_;     // last: it uses all of the above
};

}  // namespace nibble::engine
