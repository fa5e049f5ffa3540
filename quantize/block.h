// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One decoder layer on its way through quantization: its seven matrices, and loading it from a
// checkpoint.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "engine/model/model_config.h"
#include "engine/model/safetensors.h"
#include "quantize/methods/calibration_data.h"
#include "quantize/methods/equalization.h"

namespace nibble::quantize {

inline constexpr int kNumMatrices = 7;
// q, k, v, o, gate, up, down: the order everywhere.
std::array<Matrix*, kNumMatrices> Matrices(BlockWeights& block);
std::array<const Matrix*, kNumMatrices> Matrices(const BlockWeights& block);
inline constexpr std::array<Site, kNumMatrices> kSiteOfMatrix = {
    Site::kQkv, Site::kQkv, Site::kQkv, Site::kO, Site::kGateUp, Site::kGateUp, Site::kDown};

// Layer `layer_idx` with names and sizes, norms and biases of zeros, and no floats in its matrices.
BlockWeights EmptyBlock(const engine::ModelConfig& config, int64_t layer_idx);

// The norms of a layer by the name of their tensor; q_norm and k_norm where the model has them.
struct Norm {
  std::string name;  // "model.layers.0.input_layernorm.weight"
  std::vector<float> BlockWeights::*member;
};
std::vector<Norm> Norms(const BlockWeights& block);

// All tensors of the layer in a full-precision checkpoint.
std::vector<std::string> TensorNames(const BlockWeights& block);

// Layer `layer_idx` of a full-precision checkpoint as floats. NOT_FOUND or INVALID_ARGUMENT, naming
// the tensor, for one that is missing, has another shape or type, or is not finite.
absl::StatusOr<BlockWeights> LoadBlock(const engine::Checkpoint& checkpoint,
                                       const engine::ModelConfig& config, int64_t layer_idx,
                                       ThreadPool* pool);

// A layer after quantization. `weights` has names, shapes, norms and biases as they are written;
// the floats of its matrices are gone.
struct QuantizedBlock {
  BlockWeights weights;
  std::array<QuantizedWeight, kNumMatrices> matrices;
};
// `block` with the floats that its codes and scales stand for.
BlockWeights Dequantized(const QuantizedBlock& block);

}  // namespace nibble::quantize
