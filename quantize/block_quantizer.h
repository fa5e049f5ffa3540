// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One decoder layer through the steps of a recipe, in their order:
//
//   measure      rounding to nearest as it would be: the "before" of the report
//   equalize     awq or fptq, on weights, norms and statistics together
//   clip         scales within which rounding costs least at the output
//   round        to nearest or GPTQ, matrix by matrix
//
// Attention goes through all of them, then the feed-forward network; of a layer with experts, one
// expert after another, each read when its turn has come. There the inputs of gate and up are not
// equalized: the router and all experts read the same norm, and a router in 16 bits can take the
// scales back only where these are powers of two.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>

#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "engine/model/model_config.h"
#include "quantize/block.h"
#include "quantize/expert_inputs.h"
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

struct Expert {
  FeedForward weights;
  std::optional<ExpertStatistics> statistics;  // with calibration
};
// Reads expert `expert_idx` of a layer.
using ExpertSource = std::function<absl::StatusOr<Expert>(size_t expert_idx)>;

struct BlockToQuantize {
  BlockWeights weights;                   // experts are named and have no floats
  BlockStatistics* statistics = nullptr;  // null for the recipe rtn without calibration; changed
  ExpertSource read_expert;               // of a layer with experts
};

// Fills `report` but for its times and norm tweaking. Errors name the matrix. Deterministic.
absl::StatusOr<QuantizedBlock> QuantizeBlock(BlockToQuantize block, const AttentionShape& shape,
                                             const BlockQuantizerOptions& options,
                                             const StepCallback& on_step, LayerReport* report,
                                             ThreadPool* pool);

}  // namespace nibble::quantize
