// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The callers' side of EngineLoop: what other threads may ask of it.

#include <algorithm>
#include <chrono>
#include <utility>

#include "engine/engine_loop.h"

namespace nibble::engine {
namespace {

// Longest wait that no clock arithmetic overflows on.
constexpr int64_t kMaxWaitNs = int64_t{365} * 24 * 3600 * 1'000'000'000;

// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014): element
// `index` of the stream that starts at `seed`.
uint64_t DrawSeed(uint64_t seed, uint64_t index) {
  uint64_t z = seed + (index + 1) * 0x9e3779b97f4a7c15U;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
  return z ^ (z >> 31);
}

}  // namespace

absl::Status EngineLoop::Validate(const EngineRequest& request) const {
  if (request.sink == nullptr) return InvalidArgument("a request has no sink");
  const SamplingLimits& limits = config_.sampling_limits;
  const auto num_prompt_tokens = static_cast<int64_t>(request.prompt_token_ids.size());
  if (num_prompt_tokens == 0) return InvalidArgument("the prompt is empty, must have 1 token");
  if (num_prompt_tokens >= limits.max_model_len) {
    return InvalidArgument(
        "the prompt has {} tokens, the limit is {}: the context is {} tokens and one must be left "
        "for the answer",
        num_prompt_tokens, limits.max_model_len - 1, limits.max_model_len);
  }
  for (size_t i = 0; i < request.prompt_token_ids.size(); ++i) {
    const int32_t id = request.prompt_token_ids[i];
    if (id < 0 || id >= limits.vocab_size) {
      return InvalidArgument("prompt token {} has id {}, must be in [0, {})", i, id,
                             limits.vocab_size);
    }
  }
  NIBBLE_RETURN_IF_ERROR(request.sampling.Validate(limits));
  const int64_t num_left = limits.max_model_len - num_prompt_tokens;
  if (request.sampling.max_tokens != kFillContext && request.sampling.max_tokens > num_left) {
    return InvalidArgument(
        "max_tokens is {} and the prompt has {} tokens: {} in all, the context is {} tokens",
        request.sampling.max_tokens, num_prompt_tokens,
        request.sampling.max_tokens + num_prompt_tokens, limits.max_model_len);
  }
  if (request.sampling.min_tokens > num_left) {
    return InvalidArgument("min_tokens is {}, the limit is {} beside a prompt of {} tokens",
                           request.sampling.min_tokens, num_left, num_prompt_tokens);
  }
  return absl::OkStatus();
}

// All but what needs the mutex: the id and a drawn seed.
EngineLoop::Arrival EngineLoop::Prepare(EngineRequest request) const {
  const auto num_prompt_tokens = static_cast<int64_t>(request.prompt_token_ids.size());
  SamplingParams& sampling = request.sampling;
  sampling.max_tokens =
      std::min(sampling.max_tokens, config_.sampling_limits.max_model_len - num_prompt_tokens);
  OutputProcessor output(tokenizer_, sampling, request.prompt_token_ids);
  ActiveRequest active{.sink = std::move(request.sink),
                       .output = std::move(output),
                       .num_prompt_tokens = num_prompt_tokens,
                       .max_tokens = sampling.max_tokens,
                       .queued_ns = clock_->NowNs()};
  SequenceSpec sequence{.prompt_token_ids = std::move(request.prompt_token_ids),
                        .sampling = std::move(sampling),
                        .priority = request.priority};
  return {std::move(sequence), std::move(active)};
}

absl::StatusOr<std::vector<RequestId>> EngineLoop::Submit(std::vector<EngineRequest> requests) {
  for (size_t i = 0; i < requests.size(); ++i) {
    const absl::Status status = Validate(requests[i]);
    if (!status.ok()) {
      return requests.size() == 1 ? status : Annotate(status, fmt::format("request {}", i));
    }
  }
  std::vector<Arrival> arrivals;
  arrivals.reserve(requests.size());
  for (EngineRequest& request : requests) arrivals.push_back(Prepare(std::move(request)));

  std::vector<RequestId> ids;
  ids.reserve(arrivals.size());
  const std::lock_guard lock(mutex_);
  if (!health_.ok()) {
    return Unavailable("the engine failed: {}", std::string(health_.message()));
  }
  if (mailbox_.stopping) return Unavailable("the engine has stopped");
  if (outage_expired_) {
    return Unavailable("{}; the group timeout of {:g} s is over, try again later",
                       std::string(outage_status_.message()),
                       static_cast<double>(config_.group_timeout_ns) * 1e-9);
  }
  if (draining_) return Unavailable("the engine is draining and takes no new requests");
  const auto num_new = static_cast<int64_t>(arrivals.size());
  if (num_new > config_.max_queued_requests - num_queued_) {
    return ResourceExhausted("{} requests are waiting, {} more exceed the limit of {}", num_queued_,
                             num_new, config_.max_queued_requests);
  }
  for (Arrival& arrival : arrivals) {
    arrival.sequence.id = next_id_++;
    arrival.sequence.seed = arrival.sequence.sampling.seed
                                ? *arrival.sequence.sampling.seed
                                : DrawSeed(config_.seed, num_drawn_seeds_++);
    ids.push_back(arrival.sequence.id);
    mailbox_.arrivals.push_back(std::move(arrival));
  }
  if (num_unfinished_ == 0 && num_new > 0) heartbeat_.WorkCame(clock_->NowNs());
  num_queued_ += num_new;
  num_unfinished_ += num_new;
  mail_came_.notify_one();
  return ids;
}

void EngineLoop::Cancel(RequestId id) {
  const std::lock_guard lock(mutex_);
  if (num_unfinished_ == 0) return;
  mailbox_.cancellations.push_back(id);
  mail_came_.notify_one();
}

EngineStats EngineLoop::Stats() const {
  const std::lock_guard lock(mutex_);
  EngineStats stats = published_stats_;
  stats.num_waiting += static_cast<int64_t>(mailbox_.arrivals.size());
  return stats;
}

absl::Status EngineLoop::Health() const {
  {
    const std::lock_guard lock(mutex_);
    if (!health_.ok()) return health_;
    // Until the loop has seen it: who finds the engine healthy can submit.
    if (!outage_status_.ok()) return outage_status_;
  }
  return step_thread_.Ready();  // an idle loop does not ask
}

absl::Status EngineLoop::Drain(int64_t timeout_ns) {
  std::unique_lock lock(mutex_);
  draining_ = true;
  const std::chrono::nanoseconds timeout(std::clamp<int64_t>(timeout_ns, 0, kMaxWaitNs));
  if (request_left_.wait_for(lock, timeout, [this] { return num_unfinished_ == 0; })) {
    return absl::OkStatus();
  }
  return absl::DeadlineExceededError(fmt::format("{} requests are not finished after {:.3f} s",
                                                 num_unfinished_,
                                                 static_cast<double>(timeout.count()) * 1e-9));
}

void EngineLoop::Stop() {
  {
    const std::lock_guard lock(mutex_);
    mailbox_.stopping = true;
  }
  mail_came_.notify_one();
  const std::lock_guard lock(stop_mutex_);
  if (thread_.joinable()) thread_.join();
}

}  // namespace nibble::engine
