// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One rank in this process: a model, its KV cache and its sampler.
#pragma once

#include <cstdint>
#include <memory>

#include "base/status.h"
#include "base/thread_pool.h"
#include "engine/exec/executor.h"
#include "engine/model/model.h"

namespace nibble::engine {

struct LocalExecutorOptions {
  int64_t block_size = 16;
  int64_t num_blocks = 0;     // KV blocks; > 0
  int64_t max_model_len = 0;  // 0: the model's max_position_embeddings
};

class LocalExecutor final : public Executor {
 public:
  // `pool` must outlive the executor and be used by nobody else while a step runs.
  static absl::StatusOr<std::unique_ptr<LocalExecutor>> Create(std::unique_ptr<Model> model,
                                                               const LocalExecutorOptions& options,
                                                               ThreadPool* pool);

  ExecutorLimits limits() const override;
  absl::StatusOr<StepOutput> Execute(const StepPlan& plan) override;
  const Model& model() const { return *model_; }

 private:
  LocalExecutor(std::unique_ptr<Model> model, KvCache cache, const ExecutorLimits& limits,
                ThreadPool* pool);

  std::unique_ptr<Model> model_;
  KvCache cache_;
  ExecutorLimits limits_;
  ThreadPool* pool_;
  AlignedBuffer<float> logits_;  // [num_samples, vocab_size], grows
};

}  // namespace nibble::engine
