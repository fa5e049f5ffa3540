// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A load test from start to end: wait for the server, make the prompts, warm up, run, sum up.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"

#include "base/status.h"
#include "client/load/load_options.h"
#include "client/load/runner.h"
#include "client/load/server_api.h"

namespace nibble::client {

struct LoadEnvironment {
  ServerApi* server = nullptr;
  TextCodec* tokenizer = nullptr;  // null: the server is asked
  RunHooks hooks;
  // What happens, a line each; may be empty.
  std::function<void(const std::string&)> say;
  std::string date;  // of the result; empty: now
  // Prompts that were made of those that are; may be empty.
  std::function<void(int64_t done, int64_t total)> prompt_progress;
  bool with_details = false;  // every request's own figures in the result
};

// "20261122-180327", local time.
std::string DateNow();

struct LoadResult {
  nlohmann::ordered_json json;
  bool interrupted = false;
};

// The model to test: the one that is asked for or the first one listed. Waits as long as `options`
// say for a server that is not there or not ready. NOT_FOUND naming the models that are served;
// CANCELLED when interrupted.
absl::StatusOr<ServedModel> WaitUntilReady(const LoadOptions& options,
                                           const LoadEnvironment& environment);

// REQUIRES valid options. Failed requests are in the result, not in the status.
absl::StatusOr<LoadResult> RunLoadTest(const LoadOptions& options, const ServedModel& model,
                                       const LoadEnvironment& environment);

// One test for each rate or each concurrency (one of the two lists), each with a seed of its own:
// prompts that came before would be in the server's cache.
struct SweepOptions {
  LoadOptions load;
  std::vector<double> request_rates;
  std::vector<int64_t> max_concurrencies;

  // INVALID_ARGUMENT with a line for each violation.
  absl::Status Validate() const;
  size_t size() const { return request_rates.size() + max_concurrencies.size(); }
};

struct SweepResult {
  // {"sweep": "request_rate", ..., "results": [results of RunLoadTest]}: of the runs that were
  // made.
  nlohmann::ordered_json json;
  bool interrupted = false;
  absl::Status status;  // why there are not more of them; OK when interrupted
};

// `row` is given the table's head and its rows as they come to be. Ends at an interrupt, and at a
// run that cannot begin, with what there is.
SweepResult RunSweep(const SweepOptions& options, const ServedModel& model,
                     const LoadEnvironment& environment,
                     const std::function<void(const std::string&)>& row);

}  // namespace nibble::client
