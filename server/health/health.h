// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What state the server is in, and why: one answer for probes, gRPC's health service, the log and
// the metrics. It comes from work done, not from threads that still answer.
//
//   loading --> ready <--> stalled    a step takes longer than step_timeout
//                 ^ ^----> broken     the group of ranks lost one and forms anew
//                 v
//               failed                nothing will be served again
//   any of these but loading --> draining
//
//   Health health({.step_timeout = std::chrono::seconds(60)});
//   health.Watch(engine);               // the model is loaded: the engine's word counts
//   health.Report().is_ready()
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "engine/engine.h"

namespace nibble::server {

enum class HealthState { kLoading, kReady, kStalled, kBroken, kDraining, kFailed };
inline constexpr int kNumHealthStates = 6;

std::string_view ToString(HealthState state);

struct HealthReport {
  HealthState state = HealthState::kLoading;
  std::string reason;  // a sentence for people
  // How long the engine has been at work without ending a step; 0: it has nothing to do.
  double step_age_seconds = 0.0;
  double loaded = 0.0;         // share of the weights, while loading; 0: not known
  bool needs_restart = false;  // waiting does not help any more

  // To be sent requests.
  bool is_ready() const { return state == HealthState::kReady; }
  // Not to be killed.
  bool is_live() const { return !needs_restart; }
};

struct HealthOptions {
  // A step, from its own start, that takes longer than this has stalled.
  std::chrono::nanoseconds step_timeout = std::chrono::seconds(60);
  // How long it may take until what computes mends itself: a group of ranks replaces a rank that
  // hangs in a step. 0: it never does.
  std::chrono::nanoseconds self_repair{0};
  const Clock* clock = &Clock::Monotonic();  // the engine's; not owned
};

// Thread-safe.
class Health {
 public:
  explicit Health(const HealthOptions& options) : options_(options) {}
  Health(const Health&) = delete;
  Health& operator=(const Health&) = delete;

  // While loading: what is done now ("loading weights"), and how much of that is done.
  void SetLoading(std::string_view what);
  void SetProgress(int64_t done, int64_t total);
  // Loading is over. `engine` must outlive every Report().
  void Watch(const engine::Engine* engine);
  // For good.
  void StartDraining();

  // Takes no lock that the engine thread holds for long.
  HealthReport Report() const;

 private:
  HealthReport Loading() const;
  void Judge(const engine::Engine& engine, HealthReport* report) const;

  const HealthOptions options_;
  std::atomic<const engine::Engine*> engine_{nullptr};
  std::atomic<bool> is_draining_{false};
  mutable std::mutex mutex_;
  // Guarded by mutex_:
  std::string loading_ = "starting";
  double loaded_ = 0.0;
};

}  // namespace nibble::server
