// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The layers of a model one after another, each quantized on what the quantized ones before it give
// it. Memory holds one layer in a few forms and the residual stream of the calibration tokens.
//
//   for each layer:   load ─▶ run in float, watching the inputs of the linear layers
//                          ─▶ QuantizeBlock ─▶ tweak norms ─▶ (the caller stores it)
//                          ─▶ run quantized: the residual stream of the next layer
#pragma once

#include <cstdint>
#include <optional>

#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "engine/model/model_config.h"
#include "engine/model/safetensors.h"
#include "quantize/block.h"
#include "quantize/block_quantizer.h"
#include "quantize/block_runner.h"
#include "quantize/calibration.h"
#include "quantize/expert_inputs.h"
#include "quantize/report.h"

namespace nibble::quantize {

struct LayerPipelineOptions {
  BlockQuantizerOptions block;
  std::optional<double> norm_tweak_rate;  // lr0; unset: norms are not tweaked
  int64_t min_expert_tokens = ExpertInputsOptions().min_tokens;
};

class LayerPipeline {
 public:
  // Everything given must outlive the pipeline.
  LayerPipeline(const engine::Checkpoint& source, const engine::ModelConfig& config,
                const LayerPipelineOptions& options, ThreadPool* pool)
      : source_(source), config_(config), options_(options), pool_(pool) {}

  // Before the first layer; without it layers are quantized by their weights alone.
  // INVALID_ARGUMENT or NOT_FOUND for the embedding, RESOURCE_EXHAUSTED when the tokens' states do
  // not fit in memory.
  absl::Status Calibrate(const CalibrationTokens& tokens);

  // The next layer, on the residual stream as it is.
  absl::StatusOr<QuantizedBlock> Quantize(int64_t layer_idx, const StepCallback& on_step,
                                          LayerReport* report);
  // Runs the residual stream through a layer as Quantize() gave it (or as it was read back).
  absl::Status Advance(const QuantizedBlock& block);

 private:
  struct Watched {
    BlockStatistics statistics;
    std::optional<ExpertInputs> experts;  // of a layer with experts
  };
  absl::StatusOr<Watched> Watch(const BlockWeights& block, const StepCallback& on_step);
  absl::StatusOr<Expert> ReadExpert(const BlockWeights& names, size_t expert_idx,
                                    ExpertInputs* inputs);
  absl::StatusOr<NormTweakReport> Tweak(QuantizedBlock* block);

  const engine::Checkpoint& source_;
  const engine::ModelConfig& config_;
  const LayerPipelineOptions& options_;
  ThreadPool* pool_;
  std::optional<HiddenStates> states_;
  kernels::RopeTable rope_;
};

}  // namespace nibble::quantize
