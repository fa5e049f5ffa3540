// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// EngineLoop's part of a life without its executor. Sequences lose what was computed, never their
// tokens: they wait, and go on where they were when the executor is back.

#include <algorithm>
#include <string>

#include "base/check.h"
#include "base/log.h"
#include "engine/engine_loop.h"

namespace nibble::engine {
namespace {

double Seconds(int64_t ns) { return static_cast<double>(ns) * 1e-9; }

}  // namespace

void EngineLoop::BeginOutage(const absl::Status& why) {
  NIBBLE_CHECK(undelivered_.empty() && in_flight_.empty());
  const int64_t num_lost = scheduler_.LoseKvCache();
  ++stats_.num_outages;
  stats_.num_lost_sequences += num_lost;
  // An executor that comes back and is lost again before a step is done has been away all along.
  const int64_t since_ns = outage_ ? outage_->since_ns : clock_->NowNs();
  outage_ = Outage{.since_ns = since_ns, .waiting = true, .why = why};
  // A loss while idle is told by the first step after it, which had nothing to lose.
  if (num_lost > 0) {
    log::Warning("{} running requests wait to be recomputed: {}", num_lost,
                 std::string(why.message()));
  } else {
    log::Info("the KV cache was lost with nothing in it that is needed: {}",
              std::string(why.message()));
  }
  PublishOutage();
  PublishStats();
}

bool EngineLoop::ReadyForSteps() {
  // Steps begun after the executor came back end the outage, or begin the next one.
  if (!outage_ || !in_flight_.empty()) return true;
  const absl::Status ready = step_thread_.Ready();
  if (!ready.ok() && !absl::IsUnavailable(ready)) {
    FailEngine(ready);
    return false;
  }
  if (ready.ok() && outage_->waiting) {
    heartbeat_.ExecutorCameBack(clock_->NowNs());  // before the outage is told to be over
    log::Info("the executor is ready again after {:.1f} s, {} requests go on",
              Seconds(clock_->NowNs() - outage_->since_ns), scheduler_.num_waiting());
  }
  outage_->waiting = !ready.ok();
  if (!ready.ok()) outage_->why = ready;
  PublishOutage();
  if (HasWaitedTooLong()) EndWhatWaits();
  if (!ready.ok()) return false;
  if (scheduler_.empty()) outage_.reset();  // else a step that is done ends it
  return true;
}

bool EngineLoop::HasWaitedTooLong() const {
  return clock_->NowNs() - outage_->since_ns > config_.group_timeout_ns;
}

// All requests end together: those that came during the outage have waited less, and another try
// later serves them as well as waiting would.
void EngineLoop::EndWhatWaits() {
  const int64_t now_ns = clock_->NowNs();
  while (!active_.empty()) {
    const auto& [id, request] = *active_.begin();
    const double waited = Seconds(now_ns - std::max(request.queued_ns, outage_->since_ns));
    EndWithoutToken(id, FinishReason::kError,
                    Unavailable("{}; the request waited {:.1f} s for it (the group timeout is "
                                "{:g} s), try again later",
                                std::string(outage_->why.message()), waited,
                                Seconds(config_.group_timeout_ns)));
  }
}

void EngineLoop::PublishOutage() {
  const bool expired = outage_->waiting && HasWaitedTooLong();
  const std::lock_guard lock(mutex_);
  outage_status_ = outage_->waiting ? outage_->why : absl::OkStatus();
  outage_expired_ = expired;
}

}  // namespace nibble::engine
