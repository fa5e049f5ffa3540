// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One rank in this process: a model, its KV cache and its sampler.
#pragma once

#include <cstdint>
#include <memory>
#include <thread>

#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "engine/exec/executor.h"
#include "engine/model/model.h"

namespace nibble::engine {

struct LocalExecutorOptions {
  int64_t block_size = 16;
  int64_t num_blocks = 0;     // KV blocks; > 0
  int64_t max_model_len = 0;  // 0: the model's max_position_embeddings
  // The largest step, as the scheduler's; plans beyond it are refused.
  int64_t max_num_batched_tokens = 2048;
  int64_t max_num_seqs = 64;  // sequences, and tokens sampled
};

class LocalExecutor final : public Executor {
 public:
  // Takes the memory of the largest step and of the cache: RESOURCE_EXHAUSTED here, and not in a
  // step, when there is too little. `pool` must outlive the executor and be used by nobody else
  // while a step runs.
  static absl::StatusOr<std::unique_ptr<LocalExecutor>> Create(std::unique_ptr<Model> model,
                                                               const LocalExecutorOptions& options,
                                                               ThreadPool* pool);

  ExecutorLimits limits() const override;
  // Small scratch memory is still taken in a step; RESOURCE_EXHAUSTED when even that fails.
  absl::StatusOr<StepOutput> Execute(const StepPlan& plan) override;
  const Model& model() const { return *model_; }

 private:
  LocalExecutor(std::unique_ptr<Model> model, KvCache cache, AlignedBuffer<float> logits,
                const LocalExecutorOptions& options, Isa isa, ThreadPool* pool);

  absl::Status CheckSize(const StepPlan& plan) const;

  std::unique_ptr<Model> model_;
  KvCache cache_;
  AlignedBuffer<float> logits_;  // [max_num_seqs, vocab_size]
  const LocalExecutorOptions options_;
  const Isa isa_;  // for sampling; the model has its own
  ThreadPool* pool_;
  std::thread::id caller_;  // of the last Execute(), bound to the pool's first CPU
};

}  // namespace nibble::engine
