// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/exec/local_executor.h"

#include <utility>

namespace nibble::engine {

absl::StatusOr<std::unique_ptr<LocalExecutor>> LocalExecutor::Create(
    std::unique_ptr<Model> model, const LocalExecutorOptions& options, ThreadPool* pool) {
  NIBBLE_ASSIGN_OR_RETURN(auto runner, StepRunner::Create(model.get(), options, pool));
  return std::unique_ptr<LocalExecutor>(new LocalExecutor(std::move(model), std::move(runner)));
}

absl::Status LocalExecutor::Begin(const StepPlan& plan) {
  plan_ = &plan;
  return absl::OkStatus();
}

absl::StatusOr<StepOutput> LocalExecutor::Finish() {
  const StepPlan* const plan = std::exchange(plan_, nullptr);
  if (plan == nullptr) return absl::FailedPreconditionError("no step is under way");
  return runner_->Run(*plan);
}

}  // namespace nibble::engine
