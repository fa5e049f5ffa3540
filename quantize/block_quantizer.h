// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One decoder layer through the steps of a recipe, in their order:
//
//   measure      rounding to nearest as it would be: the "before" of the report
//   equalize     awq or fptq, on weights, norms and statistics together
//   clip         scales within which rounding costs least at the output
//   round        to nearest or GPTQ, matrix by matrix
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>

#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "engine/model/model_config.h"
#include "quantize/block.h"
#include "quantize/recipe.h"
#include "quantize/report.h"

namespace nibble::quantize {

struct BlockQuantizerOptions {
  Scheme scheme = Scheme::kW4A8;
  int64_t group_size = 128;  // kChannelGroup: one scale per output channel
  Recipe recipe;
  Isa isa = Isa::kRef;
};

// Told what is about to be done, and how much of the layer's steps is done (0..1).
using StepCallback = std::function<void(std::string_view step, double share)>;

AttentionShape AttentionShapeOf(const engine::ModelConfig& config);

// `statistics` is null for the recipe rtn without calibration. Fills `report` but for its times and
// norm tweaking. Errors name the matrix. Deterministic.
absl::StatusOr<QuantizedBlock> QuantizeBlock(BlockWeights block, BlockStatistics* statistics,
                                             const AttentionShape& shape,
                                             const BlockQuantizerOptions& options,
                                             const StepCallback& on_step, LayerReport* report,
                                             ThreadPool* pool);

}  // namespace nibble::quantize
