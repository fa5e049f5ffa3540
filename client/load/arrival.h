// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// When requests arrive: vLLM's processes, planned before the first one is sent.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

namespace nibble::client {

struct ArrivalOptions {
  double request_rate = std::numeric_limits<double>::infinity();  // per second
  // Shape of the gamma distribution of gaps: 1 is a Poisson process, less is burstier, infinity
  // even.
  double burstiness = 1;
  std::string ramp_up_strategy;     // "", linear, exponential: from one rate to another
  std::optional<double> start_rps;  // with a ramp
  std::optional<double> end_rps;

  // One line for each violation, naming option, value and limit.
  void Validate(std::vector<std::string>* violations) const;
  // The same for `count` requests that take too long to come; infinite rates take no time.
  void CheckSpan(int64_t count, std::vector<std::string>* violations) const;
  bool has_ramp() const { return !ramp_up_strategy.empty(); }
};

// Seconds from the start of the run, not falling. Without a ramp they are stretched so that the
// last request comes at count / request_rate: what seeds make of the mean is not measured.
std::vector<double> PlanArrivals(const ArrivalOptions& options, int64_t count, uint64_t seed);

}  // namespace nibble::client
