// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Step plans and their outputs as bytes: the same plan drives every rank. Flat, little-endian, for
// ranks of one version; whatever bytes come in, decoding ends in a value or an error.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"
#include "engine/scheduler/step_plan.h"

namespace nibble::engine {

std::string EncodePlan(const StepPlan& plan);
// INVALID_ARGUMENT naming field, value and limit. Sizes are checked against the bytes that are
// there before memory is taken; what ids and positions mean, Model::Forward checks.
absl::StatusOr<StepPlan> DecodePlan(std::string_view bytes);

std::string EncodeOutput(const StepOutput& output);
absl::StatusOr<StepOutput> DecodeOutput(std::string_view bytes);

}  // namespace nibble::engine
