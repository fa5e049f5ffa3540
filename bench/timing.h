// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#pragma once

#include <chrono>
#include <cstdint>
#include <utility>
#include <vector>

namespace nibble::bench {

struct Timing {
  double median_s = 0.0;
  double best_s = 0.0;
  int64_t runs = 0;
};

// That body() takes.
template <typename Body>
double Seconds(const Body& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// REQUIRES: at least one.
Timing Summarize(std::vector<double> seconds);

// Times body(0), body(1) ... one by one until they took `min_seconds` together, `min_runs` at
// least.
template <typename Body>
Timing Measure(double min_seconds, int64_t min_runs, const Body& body) {
  std::vector<double> seconds;
  double total = 0.0;
  for (int64_t i = 0; i < min_runs || total < min_seconds; ++i) {
    seconds.push_back(Seconds([&] { body(i); }));
    total += seconds.back();
  }
  return Summarize(std::move(seconds));
}

}  // namespace nibble::bench
