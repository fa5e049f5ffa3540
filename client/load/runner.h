// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A run: requests are sent as planned, and what comes back is written down with its time.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

#include "base/clock.h"
#include "client/load/request.h"
#include "client/load/schedule.h"
#include "client/load/transport.h"

namespace nibble::client {

// Of a run that is going on.
struct LoadProgress {
  int64_t total = 0;
  int64_t completed = 0;
  int64_t failed = 0;
  int64_t running = 0;
  double seconds = 0;       // since the start
  double chunks_per_s = 0;  // since the last time
  double mean_ttft_ms = 0;  // so far; 0: none yet
  double mean_itl_ms = 0;
};

struct RunHooks {
  const Clock* clock = &Clock::Monotonic();
  const std::atomic<bool>* interrupted = nullptr;     // may be null; once true, the run ends
  std::function<void(const LoadProgress&)> progress;  // may be empty; five times a second
};

struct RunOutcome {
  std::vector<RequestRecord> records;  // as the requests
  int64_t duration_ns = 0;
  bool interrupted = false;
  std::vector<int64_t> wake_delays_ns;
  int64_t num_resends = 0;
  double cpu_seconds = 0;  // of the thread that ran it
};

// `arrivals_s` has as many times as there are requests. Returns when all have ended.
RunOutcome RunRequests(const std::vector<LoadRequest>& requests,
                       const std::vector<double>& arrivals_s, int64_t max_concurrency,
                       Transport* transport, const RunHooks& hooks);

}  // namespace nibble::client
