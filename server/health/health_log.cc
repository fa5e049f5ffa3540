// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/health/health_log.h"

#include <utility>

#include "fmt/core.h"

#include "base/log.h"

namespace nibble::server {
namespace {

bool IsTold(HealthState state) {
  return state != HealthState::kLoading && state != HealthState::kDraining;
}

}  // namespace

void HealthLog::TellLog(bool is_ready, const std::string& line) {
  is_ready ? log::Info("{}", line) : log::Warning("{}", line);
}

HealthLog::HealthLog(const Health* health, std::chrono::milliseconds period, Tell tell)
    : health_(health), period_(period), tell_(std::move(tell)), thread_([this] { Run(); }) {}

HealthLog::~HealthLog() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void HealthLog::Run() {
  HealthReport told{.state = HealthState::kReady};
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, period_, [this] { return stopping_; })) {
    HealthReport now = health_->Report();
    if (!IsTold(now.state)) continue;
    if (now.state == told.state && now.needs_restart == told.needs_restart) continue;
    if (now.is_ready()) {
      tell_(true, fmt::format("health: ready again, after {}", ToString(told.state)));
    } else {
      tell_(false, fmt::format("health: {}: {}", ToString(now.state), now.reason));
    }
    told = std::move(now);
  }
}

}  // namespace nibble::server
