// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/health/health.h"

#include <algorithm>

#include "base/status.h"

namespace nibble::server {
namespace {

// A stall is taken for lasting when it has lasted for so many times the step timeout. One is not
// enough: a restart costs all answers in progress, and the step may still end. A stalled server
// takes no new clients meanwhile.
constexpr int kStepTimeoutsToRestart = 3;

double Seconds(int64_t ns) { return static_cast<double>(ns) * 1e-9; }

}  // namespace

std::string_view ToString(HealthState state) {
  switch (state) {
    case HealthState::kLoading:
      return "loading";
    case HealthState::kReady:
      return "ready";
    case HealthState::kStalled:
      return "stalled";
    case HealthState::kBroken:
      return "broken";
    case HealthState::kDraining:
      return "draining";
    case HealthState::kFailed:
      return "failed";
  }
  return "failed";
}

void Health::SetLoading(std::string_view what) {
  const std::lock_guard lock(mutex_);
  loading_ = what;
  loaded_ = 0.0;
}

void Health::SetProgress(int64_t done, int64_t total) {
  if (total <= 0) return;
  const std::lock_guard lock(mutex_);
  loaded_ = std::clamp(static_cast<double>(done) / static_cast<double>(total), 0.0, 1.0);
}

void Health::Watch(const engine::Engine* engine) {
  engine_.store(engine, std::memory_order_release);
}

void Health::StartDraining() { is_draining_.store(true); }

HealthReport Health::Loading() const {
  const std::lock_guard lock(mutex_);
  HealthReport report{.state = HealthState::kLoading, .reason = loading_, .loaded = loaded_};
  if (loaded_ > 0.0) report.reason += fmt::format(", {:.0f} %", loaded_ * 100.0);
  return report;
}

HealthReport Health::Report() const {
  const engine::Engine* const engine = engine_.load(std::memory_order_acquire);
  if (engine == nullptr) return Loading();
  HealthReport report;
  Judge(*engine, &report);
  // What ends anyway is not to be killed before it has finished its answers; what has failed has
  // none.
  if (is_draining_.load() && report.state != HealthState::kFailed) {
    report.state = HealthState::kDraining;
    report.reason = "the server is shutting down";
    report.needs_restart = false;
  }
  return report;
}

void Health::Judge(const engine::Engine& engine, HealthReport* report) const {
  const absl::Status status = engine.Health();
  if (absl::IsUnavailable(status)) {
    report->state = HealthState::kBroken;
    report->reason = std::string(status.message());
    return;
  }
  if (!status.ok()) {
    report->state = HealthState::kFailed;
    report->reason = fmt::format("the engine has failed: {}", std::string(status.message()));
    report->needs_restart = true;
    return;
  }
  report->state = HealthState::kReady;
  report->reason = "requests are served";
  const int64_t since_ns = engine.Progress().waiting_since_ns();
  if (since_ns < 0) return;
  const int64_t age_ns = std::max<int64_t>(options_.clock->NowNs() - since_ns, 0);
  report->step_age_seconds = Seconds(age_ns);
  const int64_t limit_ns = options_.step_timeout.count();
  if (age_ns <= limit_ns) return;
  report->state = HealthState::kStalled;
  report->reason = fmt::format(
      "no step has ended for {:.0f} s with requests to serve, the limit is {:g} s "
      "(--step-timeout)",
      Seconds(age_ns), Seconds(limit_ns));
  const int64_t restart_ns =
      std::max(kStepTimeoutsToRestart * limit_ns, limit_ns + options_.self_repair.count());
  if (age_ns <= restart_ns) return;
  report->needs_restart = true;
  report->reason += "; only a restart helps";
}

}  // namespace nibble::server
