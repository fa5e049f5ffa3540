// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/exec/executor.h"

namespace nibble::engine {

absl::StatusOr<StepOutput> Executor::Execute(const StepPlan& plan) {
  NIBBLE_RETURN_IF_ERROR(Begin(plan));
  return Finish();
}

}  // namespace nibble::engine
