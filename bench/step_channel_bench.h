// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a step costs before anything is computed: a plan to every rank, their meeting, the answer of
// rank 0. A plan without tokens makes the ranks meet in a barrier and compute nothing.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "nlohmann/json_fwd.hpp"

#include "base/status.h"
#include "engine/exec/executor.h"

namespace nibble::bench {

struct StepChannelBenchOptions {
  int64_t steps = 20'000;  // of the empty plan
  int64_t pause_us = 0;    // between two steps: ranks that have gone to sleep are woken
  std::vector<int64_t> batches = {1, 64};  // sequences of the decode plans that are coded

  // Adds a line for each violation.
  void Validate(std::vector<std::string>* violations) const;
};

struct StepChannelSubject {
  engine::Executor* executor = nullptr;
  int num_ranks = 1;
  std::FILE* table = nullptr;  // gets the rows as they come; null: none
};

// One row for the empty plan's round trip (median, 90th and 99th percentile, best), and one for
// each batch: bytes of its decode plan, and the times of coding it and its output. An error of the
// executor ends it.
absl::StatusOr<nlohmann::ordered_json> RunStepChannelBench(const StepChannelBenchOptions& options,
                                                           const StepChannelSubject& subject);

}  // namespace nibble::bench
