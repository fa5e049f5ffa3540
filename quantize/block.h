// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One decoder layer on its way through quantization: the matrices that are rounded, their names and
// order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/model/model_config.h"
#include "quantize/methods/calibration_data.h"
#include "quantize/methods/equalization.h"

namespace nibble::quantize {

// q, k, v, o, then gate, up, down of each feed-forward network, the order everywhere: the dense
// one's, or the experts' by number and the shared one's.
std::vector<Matrix*> Matrices(BlockWeights& block);
std::vector<const Matrix*> Matrices(const BlockWeights& block);
inline constexpr size_t kAttentionMatrices = 4;
inline constexpr size_t kFeedForwardMatrices = 3;
// Of entry `matrix_idx` of Matrices().
Site SiteOfMatrix(size_t matrix_idx);

// Layer `layer_idx` with names and sizes, norms and biases of zeros, and no floats in its matrices.
// Names are those of published checkpoints, "model.layers.0.block_sparse_moe.experts.0.w1" or
// "model.layers.0.mlp.experts.0.gate_proj".
BlockWeights EmptyBlock(const engine::ModelConfig& config, int64_t layer_idx);

// The norms of a layer by the name of their tensor; q_norm and k_norm where the model has them.
struct Norm {
  std::string name;  // "model.layers.0.input_layernorm.weight"
  std::vector<float> BlockWeights::*member;
};
std::vector<Norm> Norms(const BlockWeights& block);

// The router, and the gate of a shared expert: matrices that stay as they are. Empty for a dense
// layer.
std::vector<Matrix*> UnroundedMatrices(BlockWeights& block);
std::vector<const Matrix*> UnroundedMatrices(const BlockWeights& block);

// A layer after quantization. `weights` has names, shapes, norms and biases as they are written,
// and the matrices that stay as they are; the floats of the others are gone.
struct QuantizedBlock {
  BlockWeights weights;
  std::vector<QuantizedWeight> matrices;  // as Matrices()
};
// `block` with the floats that its codes and scales stand for.
BlockWeights Dequantized(const QuantizedBlock& block);

}  // namespace nibble::quantize
