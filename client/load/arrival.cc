// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/load/arrival.h"

#include <algorithm>
#include <cmath>

#include "fmt/core.h"

#include "client/load/limits.h"
#include "client/load/random.h"

namespace nibble::client {
namespace {

constexpr double kMinRate = 1e-4;
constexpr double kMaxRate = 1e6;
constexpr double kMinBurstiness = 1e-2;
constexpr double kMaxBurstiness = 1e6;
constexpr uint64_t kArrivalStream = 1;

void CheckRate(const char* option, double value, std::vector<std::string>* violations) {
  if (!(value >= kMinRate && value <= kMaxRate)) {
    violations->push_back(
        fmt::format("{} is {}, want {} to {} a second", option, value, kMinRate, kMaxRate));
  }
}

double RateAt(const ArrivalOptions& options, int64_t idx, int64_t count) {
  if (!options.has_ramp()) return options.request_rate;
  const double progress =
      count > 1 ? static_cast<double>(idx) / static_cast<double>(count - 1) : 0.0;
  const double start = *options.start_rps;
  const double end = *options.end_rps;
  return options.ramp_up_strategy == "linear" ? start + (end - start) * progress
                                              : start * std::pow(end / start, progress);
}

}  // namespace

void ArrivalOptions::Validate(std::vector<std::string>* violations) const {
  if (!std::isinf(request_rate) || request_rate < 0) {
    CheckRate("--request-rate", request_rate, violations);
  }
  if (!(burstiness >= kMinBurstiness && burstiness <= kMaxBurstiness) && !std::isinf(burstiness)) {
    violations->push_back(fmt::format("--burstiness is {}, want {} to {}, or inf", burstiness,
                                      kMinBurstiness, kMaxBurstiness));
  }
  if (!has_ramp()) {
    if (start_rps.has_value() || end_rps.has_value()) {
      violations->push_back("--ramp-up-start-rps and --ramp-up-end-rps go with --ramp-up-strategy");
    }
    return;
  }
  if (ramp_up_strategy != "linear" && ramp_up_strategy != "exponential") {
    violations->push_back(
        fmt::format("--ramp-up-strategy is '{}', want linear or exponential", ramp_up_strategy));
  }
  if (!std::isinf(request_rate)) {
    violations->push_back("--request-rate and --ramp-up-strategy: want one of them");
  }
  if (!start_rps.has_value() || !end_rps.has_value()) {
    violations->push_back("--ramp-up-strategy needs --ramp-up-start-rps and --ramp-up-end-rps");
    return;
  }
  CheckRate("--ramp-up-start-rps", *start_rps, violations);
  CheckRate("--ramp-up-end-rps", *end_rps, violations);
}

void ArrivalOptions::CheckSpan(int64_t count, std::vector<std::string>* violations) const {
  double slowest = request_rate;
  if (has_ramp() && start_rps.has_value() && end_rps.has_value()) {
    slowest = std::min(*start_rps, *end_rps);
  }
  const double seconds = static_cast<double>(count) / slowest;
  if (seconds > kMaxSpanSeconds) {
    violations->push_back(
        fmt::format("{} requests at {} a second come in {} seconds, the limit is {}", count,
                    slowest, seconds, kMaxSpanSeconds));
  }
}

std::vector<double> PlanArrivals(const ArrivalOptions& options, int64_t count, uint64_t seed) {
  Random random(seed, kArrivalStream);
  std::vector<double> times;
  times.reserve(static_cast<size_t>(count));
  double now = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double rate = RateAt(options, i, count);
    if (!std::isinf(rate)) {
      const double shape = options.burstiness;
      now += std::isinf(shape) ? 1 / rate : random.Gamma(shape) / (rate * shape);
    }
    times.push_back(now);
  }
  if (!options.has_ramp() && now > 0) {
    const double stretch = static_cast<double>(count) / options.request_rate / now;
    for (double& time : times) time *= stretch;
  }
  return times;
}

}  // namespace nibble::client
