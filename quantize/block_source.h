// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Where a full-precision checkpoint has the tensors of a decoder layer, and reading them.
//
// Experts come in two forms: as published, a tensor for each of an expert's matrices (the names of
// EmptyBlock), or fused as transformers 5 has them in memory, the same for every architecture:
//
//   model.layers.L.mlp.experts.gate_up_proj  [experts, 2 * intermediate, hidden]  gate, then up
//   model.layers.L.mlp.experts.down_proj     [experts, hidden, intermediate]
//   model.layers.L.mlp.gate.weight           [experts, hidden]                    the router
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "engine/model/model_config.h"
#include "engine/model/safetensors.h"
#include "quantize/block.h"

namespace nibble::quantize {

// Elements [first, first + n * k) of `tensor`.
struct WeightSource {
  const engine::TensorView* tensor = nullptr;
  int64_t first = 0;
};
// Of entry `matrix_idx` of Matrices(block). NOT_FOUND or INVALID_ARGUMENT, naming the tensor, for
// one that is missing or has another shape.
absl::StatusOr<WeightSource> FindWeight(const engine::Checkpoint& checkpoint,
                                        const BlockWeights& block, size_t matrix_idx);
// Of a router or the gate of a shared expert.
absl::StatusOr<const engine::TensorView*> FindUnrounded(const engine::Checkpoint& checkpoint,
                                                        const BlockWeights& block,
                                                        const Matrix& matrix);

// All tensors that the checkpoint has of the layer: what a quantized layer takes the place of.
std::vector<std::string> TensorNames(const engine::Checkpoint& checkpoint,
                                     const BlockWeights& block);

// Layer `layer_idx` as floats, but for the experts' matrices, which have none yet. NOT_FOUND or
// INVALID_ARGUMENT, naming the tensor, for one that is missing, has another shape or type, or is
// not finite.
absl::StatusOr<BlockWeights> LoadWithoutExperts(const engine::Checkpoint& checkpoint,
                                                const engine::ModelConfig& config,
                                                int64_t layer_idx, ThreadPool* pool);
// Expert `expert_idx` of `block.moe->experts` as floats.
absl::StatusOr<FeedForward> LoadExpert(const engine::Checkpoint& checkpoint,
                                       const BlockWeights& block, size_t expert_idx,
                                       ThreadPool* pool);
// All of it.
absl::StatusOr<BlockWeights> LoadBlock(const engine::Checkpoint& checkpoint,
                                       const engine::ModelConfig& config, int64_t layer_idx,
                                       ThreadPool* pool);

}  // namespace nibble::quantize
