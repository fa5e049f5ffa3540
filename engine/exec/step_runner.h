// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What one rank does with a plan, alone in a process or among others: checks, forward pass, and on
// the rank that has the logits, sampling.
#pragma once

#include <cstdint>
#include <memory>
#include <thread>

#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "engine/exec/executor.h"
#include "engine/exec/local_executor_options.h"
#include "engine/model/model.h"

namespace nibble::engine {

class StepRunner {
 public:
  // Takes the memory of the largest step and of the cache: RESOURCE_EXHAUSTED here, and not in a
  // step, when there is too little. `model` and `pool` must outlive it; `pool` is used by nobody
  // else while a step runs.
  static absl::StatusOr<std::unique_ptr<StepRunner>> Create(Model* model,
                                                            const LocalExecutorOptions& options,
                                                            ThreadPool* pool);

  // As Executor::Execute; without tokens where the model has no logits. An error of the model's
  // communicator comes as it is.
  absl::StatusOr<StepOutput> Run(const StepPlan& plan);

  ExecutorLimits limits() const;
  const LocalExecutorOptions& options() const { return options_; }

 private:
  StepRunner(Model* model, std::unique_ptr<KvCache> cache, AlignedBuffer<float> logits,
             const LocalExecutorOptions& options, Isa isa, ThreadPool* pool);

  absl::Status CheckSize(const StepPlan& plan) const;

  Model* model_;
  std::unique_ptr<KvCache> cache_;
  AlignedBuffer<float> logits_;  // HostSampling's, of max_num_seqs samples
  const LocalExecutorOptions options_;
  const Isa isa_;  // for sampling here; the model has its own
  ThreadPool* pool_;
  std::thread::id caller_;  // of the last Run(), bound to the pool's first CPU
};

}  // namespace nibble::engine
