// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Changes to logits that a request asks for, before anything is chosen.
#pragma once

#include <span>

#include "engine/scheduler/step_plan.h"

namespace nibble::engine {

// True when AdjustLogits would change something.
bool HasAdjustments(const SamplingRow& row);

// Bias, bans, then the penalties as vLLM: repetition over prompt and output (positive logits
// divided, others multiplied), frequency and presence over the output. Ids outside the row are
// ignored.
void AdjustLogits(std::span<float> logits, const SamplingRow& row);

}  // namespace nibble::engine
