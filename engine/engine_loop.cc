// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/engine_loop.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/check.h"
#include "base/log.h"

namespace nibble::engine {
namespace {

double Seconds(int64_t ns) { return static_cast<double>(ns) * 1e-9; }

// How often a loop that waits for its executor asks for it.
constexpr std::chrono::milliseconds kReadyPoll{10};

// What is to be told though no step was done for it: admissions and preemptions stay.
void AddCounts(const ScheduledStep& step, ScheduledStep* counts) {
  counts->num_preemptions += step.num_preemptions;
  counts->prefix_cache_queries += step.prefix_cache_queries;
  counts->prefix_cache_hits += step.prefix_cache_hits;
}

}  // namespace

EngineLoop::EngineLoop(EngineConfig config, const SchedulerConfig& scheduler_config,
                       std::unique_ptr<Executor> executor, const Tokenizer* tokenizer,
                       EngineObserver* observer, const Clock* clock)
    : config_(std::move(config)),
      tokenizer_(tokenizer),
      observer_(observer),
      clock_(clock),
      heartbeat_(clock->NowNs()),
      scheduler_(scheduler_config),
      max_steps_in_flight_(static_cast<size_t>(scheduler_config.max_steps_in_flight)),
      step_thread_(std::move(executor), [this] {
        // The lock keeps this from falling between the loop's look and its sleep.
        { const std::lock_guard lock(mutex_); }
        mail_came_.notify_one();
      }) {
  stats_.kv_blocks_total = scheduler_.pool().num_blocks();
  stats_.last_step_ns = clock_->NowNs();
  published_stats_ = stats_;
  thread_ = std::thread([this] { Run(); });
}

EngineLoop::~EngineLoop() { Stop(); }

void EngineLoop::Run() {
  for (;;) {
    Mailbox mail = TakeMailbox();
    AcceptArrivals(std::move(mail.arrivals));
    // What a request has computed belongs to it; the last step's tokens may even end it.
    if (!mail.cancellations.empty()) DeliverTokens();
    for (const RequestId id : mail.cancellations) {
      EndWithoutToken(id, FinishReason::kAbort, absl::OkStatus());
    }
    if (mail.stopping) {
      while (!in_flight_.empty()) FinishOldestStep();
      DeliverTokens();
      EndAll(FinishReason::kAbort, absl::OkStatus());
      return;
    }
    if (ReadyForSteps()) Step();
  }
}

EngineLoop::Mailbox EngineLoop::TakeMailbox() {
  std::unique_lock lock(mutex_);
  const auto mail_is_there = [this] {
    return mailbox_.stopping || !mailbox_.arrivals.empty() || !mailbox_.cancellations.empty();
  };
  if (outage_ && outage_->waiting) {
    mail_came_.wait_for(lock, kReadyPoll, mail_is_there);
  } else {
    mail_came_.wait(lock, [&] {
      if (mail_is_there() || !undelivered_.empty()) return true;
      if (in_flight_.empty()) return !scheduler_.empty();
      return !nothing_to_plan_ || step_thread_.IsDone();
    });
  }
  Mailbox mail = std::move(mailbox_);
  mailbox_ = {.stopping = mail.stopping};
  // Under the same lock, so that Stats() never misses a request between mailbox and scheduler.
  published_stats_.num_waiting += static_cast<int64_t>(mail.arrivals.size());
  return mail;
}

void EngineLoop::AcceptArrivals(std::vector<Arrival> arrivals) {
  for (Arrival& arrival : arrivals) {
    const RequestId id = arrival.sequence.id;
    active_.emplace(id, std::move(arrival.request));
    scheduler_.Add(std::move(arrival.sequence));
  }
  if (arrivals.empty()) return;
  nothing_to_plan_ = false;
  // Submit may have accepted these while the step that failed was still running.
  std::unique_lock lock(mutex_);
  const absl::Status health = health_;
  lock.unlock();
  if (!health.ok()) EndAll(FinishReason::kError, health);
}

void EngineLoop::Step() {
  if (in_flight_.size() < max_steps_in_flight_ && !nothing_to_plan_) BeginStep();
  DeliverTokens();  // a stop string found here ends its sequence; Update then drops its token
  if (in_flight_.size() == max_steps_in_flight_ ||
      (nothing_to_plan_ && !in_flight_.empty() && step_thread_.IsDone())) {
    FinishOldestStep();
  }
}

void EngineLoop::BeginStep() {
  const int64_t start_ns = clock_->NowNs();
  ScheduledStep step = scheduler_.Plan();
  if (step.empty()) {
    AddCounts(step, &lost_step_);
    nothing_to_plan_ = !in_flight_.empty();
    DeliverTokens();
    PublishStats();
    return;
  }
  NoteAdmissions(step, start_ns);
  PublishStats();
  if (in_flight_.empty()) heartbeat_.StepBegan(start_ns);
  in_flight_.push_back({std::move(step), start_ns});
  const absl::Status status = step_thread_.Begin(in_flight_.back().step.plan);
  if (status.ok()) return;
  AddCounts(in_flight_.back().step, &lost_step_);
  in_flight_.pop_back();
  FailSteps(status);
}

// REQUIRES a step in flight.
void EngineLoop::FinishOldestStep() {
  DeliverTokens();
  const absl::StatusOr<StepOutput> output = step_thread_.Wait();
  const StepInFlight done = std::move(in_flight_.front());
  in_flight_.pop_front();
  nothing_to_plan_ = false;
  const absl::Status status = output.ok() ? CheckOutput(done.step.plan, *output) : output.status();
  if (!status.ok()) {
    AddCounts(done.step, &lost_step_);
    FailSteps(status);
    return;
  }
  heartbeat_.StepEnded(clock_->NowNs(), !in_flight_.empty());
  outage_.reset();
  undelivered_ = scheduler_.Update(done.step, *output);
  NoteTokens(done, undelivered_);
}

// A step was not begun or not done, and none of those in flight will be.
void EngineLoop::FailSteps(const absl::Status& status) {
  DeliverTokens();
  for (const StepInFlight& lost : in_flight_) {
    // Also one that was begun in ignorance of the loss and was done: it read blocks that were lost.
    step_thread_.Wait().IgnoreError();
    AddCounts(lost.step, &lost_step_);
  }
  in_flight_.clear();
  heartbeat_.StepEnded(clock_->NowNs(), false);
  nothing_to_plan_ = false;
  if (absl::IsUnavailable(status)) {
    BeginOutage(status);
  } else {
    FailEngine(status);
  }
}

void EngineLoop::NoteAdmissions(const ScheduledStep& step, int64_t now_ns) {
  for (const ScheduledStep::Admission& admission : step.first_time) {
    ActiveRequest& request = active_.at(admission.id);
    request.scheduled_ns = now_ns;
    request.num_cached_tokens = admission.num_cached_tokens;
    request.output.set_num_cached_tokens(admission.num_cached_tokens);
    request.output.set_queue_seconds(Seconds(now_ns - request.queued_ns));
  }
  if (step.first_time.empty()) return;
  const std::lock_guard lock(mutex_);
  num_queued_ -= static_cast<int64_t>(step.first_time.size());
}

absl::Status EngineLoop::CheckOutput(const StepPlan& plan, const StepOutput& output) const {
  if (static_cast<int64_t>(output.tokens.size()) != plan.num_samples()) {
    return Internal("the executor returned {} tokens, the plan asked for {}", output.tokens.size(),
                    plan.num_samples());
  }
  for (const SampledToken& token : output.tokens) {
    if (token.token_id < 0 || token.token_id >= config_.sampling_limits.vocab_size) {
      return Internal("the executor returned token id {}, ids are in [0, {})", token.token_id,
                      config_.sampling_limits.vocab_size);
    }
  }
  return absl::OkStatus();
}

void EngineLoop::NoteTokens(const StepInFlight& done, const std::vector<TokenUpdate>& updates) {
  const ScheduledStep& step = done.step;
  const int64_t end_ns = clock_->NowNs();
  const ScheduledStep lost = std::exchange(lost_step_, {});
  StepStats step_stats{
      .num_prompt_tokens = step.num_prompt_tokens,
      .num_preemptions = step.num_preemptions + lost.num_preemptions,
      .prefix_cache_queries = step.prefix_cache_queries + lost.prefix_cache_queries,
      .prefix_cache_hits = step.prefix_cache_hits + lost.prefix_cache_hits,
      .step_seconds = Seconds(end_ns - done.start_ns)};
  for (const TokenUpdate& update : updates) {
    if (!update.has_token) continue;
    ++step_stats.num_generated_tokens;
    ActiveRequest& request = active_.at(update.id);
    if (request.first_token_ns < 0) {
      request.first_token_ns = end_ns;
      step_stats.num_prefilled_tokens += request.num_prompt_tokens;
      step_stats.num_prefilled_cached_tokens += request.num_cached_tokens;
      step_stats.time_to_first_token_seconds.push_back(Seconds(end_ns - request.queued_ns));
    } else {
      step_stats.inter_token_seconds.push_back(Seconds(end_ns - request.last_token_ns));
    }
    request.last_token_ns = end_ns;
  }
  ++stats_.num_steps;
  stats_.last_step_ns = end_ns;
  PublishStats();
  step_stats.engine = stats_;
  if (observer_ != nullptr) observer_->OnStep(step_stats);
}

void EngineLoop::DeliverTokens() {
  for (TokenUpdate& update : std::exchange(undelivered_, {})) {
    const auto request = active_.find(update.id);
    if (request == active_.end()) continue;  // cancelled since
    if (!update.has_token) {
      EndWithoutFiniteLogit(update.id);
      continue;
    }
    RequestOutput output = request->second.output.Append(std::move(update));
    if (output.finish_reason) {
      scheduler_.Finish(request->first);  // still there if a stop string ended it
      EndRequest(request, std::move(output));
    } else {
      request->second.sink->OnOutput(std::move(output));
    }
  }
}

void EngineLoop::EndWithoutFiniteLogit(RequestId id) {
  const absl::Status error = Internal(
      "the model gave no finite logit for token {} of the answer: its weights or activations "
      "overflow",
      active_.at(id).output.num_generated_tokens() + 1);
  // Once: such a model fails many requests alike, and the count of those is a metric.
  if (!std::exchange(logged_no_finite_logit_, true)) {
    log::Error("request {} ended: {}; further requests like it are not logged", id,
               std::string(error.message()));
  }
  EndWithoutToken(id, FinishReason::kError, error);
}

void EngineLoop::EndWithoutToken(RequestId id, FinishReason reason, const absl::Status& error) {
  const auto request = active_.find(id);
  if (request == active_.end()) return;
  scheduler_.Finish(id);
  EndRequest(request, request->second.output.Finish(reason, error));
}

void EngineLoop::EndAll(FinishReason reason, const absl::Status& error) {
  while (!active_.empty()) EndWithoutToken(active_.begin()->first, reason, error);
}

void EngineLoop::EndRequest(std::map<RequestId, ActiveRequest>::iterator request,
                            RequestOutput last) {
  auto node = active_.extract(request);
  ActiveRequest& ended = node.mapped();
  const bool was_scheduled = ended.scheduled_ns >= 0;
  nothing_to_plan_ = false;  // its blocks may be what another one waits for
  // Whoever sees the last delta finds the blocks and the place in the queue free.
  PublishStats();
  if (!was_scheduled) {
    const std::lock_guard lock(mutex_);
    --num_queued_;
  }
  FinishedRequestStats stats{.reason = *last.finish_reason,
                             .num_prompt_tokens = ended.num_prompt_tokens,
                             .num_cached_tokens = ended.num_cached_tokens,
                             .num_generated_tokens = ended.output.num_generated_tokens(),
                             .max_tokens = ended.max_tokens};
  const int64_t now_ns = clock_->NowNs();
  stats.e2e_seconds = Seconds(now_ns - ended.queued_ns);
  stats.queue_seconds = Seconds((was_scheduled ? ended.scheduled_ns : now_ns) - ended.queued_ns);
  if (ended.first_token_ns >= 0) {
    stats.prefill_seconds = Seconds(ended.first_token_ns - ended.scheduled_ns);
    stats.decode_seconds = Seconds(ended.last_token_ns - ended.first_token_ns);
    stats.inference_seconds = Seconds(ended.last_token_ns - ended.scheduled_ns);
  }
  if (observer_ != nullptr) observer_->OnFinished(stats);
  ended.sink->OnOutput(std::move(last));
  ended.sink.reset();

  const std::lock_guard lock(mutex_);
  if (--num_unfinished_ > 0) return;
  heartbeat_.WorkIsDone();
  request_left_.notify_all();
}

void EngineLoop::FailEngine(const absl::Status& error) {
  log::Error("the engine stopped serving: a step failed: {}", std::string(error.message()));
  outage_.reset();
  {
    const std::lock_guard lock(mutex_);
    health_ = Annotate(error, "a step failed");
    outage_status_ = absl::OkStatus();
    outage_expired_ = false;
  }
  EndAll(FinishReason::kError, error);
  scheduler_.LoseKvCache();  // no step is in flight any more
}

void EngineLoop::PublishStats() {
  stats_.num_running = scheduler_.num_running();
  stats_.num_waiting = scheduler_.num_waiting();
  stats_.kv_blocks_used = scheduler_.pool().num_used();
  const std::lock_guard lock(mutex_);
  published_stats_ = stats_;
}

}  // namespace nibble::engine
