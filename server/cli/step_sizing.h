// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The memory that the largest step works in, and what to do when there is too little of it.
#pragma once

#include <cstdint>
#include <functional>

#include "base/status.h"
#include "base/thread_pool.h"
#include "engine/model/model.h"
#include "server/config.h"

namespace nibble::cli {

// What else wants the memory that a step does not take.
struct StepNeighbors {
  int num_ranks = 1;                  // of this host, which share it; of a device of its own: 1
  int64_t kv_cache_memory_bytes = 0;  // --kv-cache-memory-bytes
  int64_t min_batched_tokens = 1;     // that --max-num-batched-tokens may be lowered to
  double gpu_memory_utilization = 0.0;
};

// `min_batched_tokens`, and the rest, as `config` says.
StepNeighbors NeighborsOf(const server::ServeConfig& config, int64_t max_model_len, int num_ranks);

// Model::Reserve. RESOURCE_EXHAUSTED is a StartError whose remedies leave room for the cache too.
absl::Status ReserveStep(engine::Model* model, const engine::StepLimits& limits,
                         const StepNeighbors& neighbors, ThreadPool* pool);

using StepBytes = std::function<int64_t(const engine::StepLimits&)>;  // Model::StepBytes

// The block of lines for a step that does not fit; `kv_seq_bytes`: what one full sequence takes of
// the cache.
absl::Status StepDoesNotFit(const StepBytes& bytes, const engine::StepLimits& limits,
                            const engine::KvMemory& memory, int64_t kv_seq_bytes,
                            const StepNeighbors& neighbors);

}  // namespace nibble::cli
