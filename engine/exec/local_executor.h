// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One rank in this process: a model, its KV cache and its sampler.
#pragma once

#include <memory>
#include <utility>

#include "base/status.h"
#include "base/thread_pool.h"
#include "engine/exec/executor.h"
#include "engine/exec/step_runner.h"
#include "engine/model/model.h"

namespace nibble::engine {

class LocalExecutor final : public Executor {
 public:
  // As StepRunner::Create, whose contract this is. `pool` must outlive the executor.
  static absl::StatusOr<std::unique_ptr<LocalExecutor>> Create(std::unique_ptr<Model> model,
                                                               const LocalExecutorOptions& options,
                                                               ThreadPool* pool);

  ExecutorLimits limits() const override { return runner_->limits(); }
  // Small scratch memory is still taken in a step; RESOURCE_EXHAUSTED when even that fails.
  absl::Status Begin(const StepPlan& plan) override;
  absl::StatusOr<StepOutput> Finish() override;
  ExpertLoad expert_load() const override { return model_->expert_load(); }
  const Model& model() const { return *model_; }

 private:
  LocalExecutor(std::unique_ptr<Model> model, std::unique_ptr<StepRunner> runner)
      : model_(std::move(model)), runner_(std::move(runner)) {}

  std::unique_ptr<Model> model_;
  std::unique_ptr<StepRunner> runner_;  // works on model_
  const StepPlan* plan_ = nullptr;      // under way
};

}  // namespace nibble::engine
