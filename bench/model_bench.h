// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The whole model, driven by step plans as the engine's executor drives it; no scheduler, no
// sampling, no server. Keys and values of the contexts are random, in blocks in random order.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "nlohmann/json_fwd.hpp"

#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "bench/device_probe.h"
#include "engine/model/model.h"

namespace nibble::bench {

struct DecodeBenchOptions {
  std::vector<int64_t> batches = {1, 8, 16, 32};  // sequences of a step
  std::vector<int64_t> contexts = {64};           // tokens of each sequence before the first step
  int64_t steps = 32;                             // a repetition
  int64_t repetitions = 3;
  std::string save;  // a file that has the document, anew after each row; empty: none

  // Adds a line for each violation.
  void Validate(std::vector<std::string>* violations) const;
};

struct PrefillBenchOptions {
  std::vector<int64_t> prompts = {512, 2048};  // tokens of the one sequence
  int64_t max_num_batched_tokens = 2048;       // longer prompts are computed in chunks of this
  int64_t repetitions = 3;
  std::string save;  // a file that has the document, anew after each row; empty: none

  void Validate(std::vector<std::string>* violations) const;
};

// What is measured. `table` gets the rows as they come; null: none.
struct ModelSubject {
  engine::Model* model = nullptr;
  Isa isa = Isa::kRef;  // that `model` was loaded for
  ThreadPool* pool = nullptr;
  DeviceProbe* probe = nullptr;  // of the device that computes the model; null: this host does
  std::FILE* table = nullptr;
};

// One row for each context and batch. `tokens_per_s` counts those of all sequences; bytes are the
// weights, once a step, and the keys and values of all sequences. On a device each row tells where
// a step goes (step_ops.h). A case that fails is a row with `error`, and an error where all do:
// INVALID_ARGUMENT for contexts beyond the model's positions, RESOURCE_EXHAUSTED when the cache
// does not fit.
absl::StatusOr<nlohmann::ordered_json> RunDecodeBench(const DecodeBenchOptions& options,
                                                      const ModelSubject& subject);

// One row for each prompt length. Operations are those of the linear layers (two for each weight
// and token). On a device the row of a prompt in one chunk tells where it goes.
absl::StatusOr<nlohmann::ordered_json> RunPrefillBench(const PrefillBenchOptions& options,
                                                       const ModelSubject& subject);

}  // namespace nibble::bench
