// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/block.h"

#include <cmath>
#include <utility>

#include "engine/model/tensor_convert.h"

namespace nibble::quantize {
namespace {

using engine::Checkpoint;
using engine::ModelConfig;
using engine::TensorView;

absl::StatusOr<std::vector<float>> LoadFinite(const Checkpoint& checkpoint, const std::string& name,
                                              std::initializer_list<int64_t> shape,
                                              ThreadPool* pool) {
  NIBBLE_ASSIGN_OR_RETURN(const TensorView* tensor, checkpoint.Get(name, shape));
  NIBBLE_ASSIGN_OR_RETURN(std::vector<float> values, engine::TensorToFloats(*tensor, pool));
  for (size_t i = 0; i < values.size(); ++i) {
    if (std::isfinite(values[i])) continue;
    return InvalidArgument("{}: tensor '{}': element {} is {}, must be finite", tensor->file, name,
                           i, values[i]);
  }
  return values;
}

}  // namespace

std::array<Matrix*, kNumMatrices> Matrices(BlockWeights& block) {
  return {&block.q, &block.k, &block.v, &block.o, &block.gate, &block.up, &block.down};
}

std::array<const Matrix*, kNumMatrices> Matrices(const BlockWeights& block) {
  return {&block.q, &block.k, &block.v, &block.o, &block.gate, &block.up, &block.down};
}

BlockWeights EmptyBlock(const ModelConfig& config, int64_t layer_idx) {
  const auto hidden = static_cast<size_t>(config.hidden_size);
  BlockWeights block;
  block.layer_idx = layer_idx;
  block.input_norm.resize(hidden);
  block.post_attention_norm.resize(hidden);
  if (config.qk_norm) {
    block.q_norm.resize(static_cast<size_t>(config.head_dim));
    block.k_norm.resize(static_cast<size_t>(config.head_dim));
  }
  const std::string attention = fmt::format("model.layers.{}.self_attn.", layer_idx);
  const std::string mlp = fmt::format("model.layers.{}.mlp.", layer_idx);
  const auto matrix = [](std::string name, int64_t n, int64_t k, bool bias) {
    return Matrix{.name = std::move(name),
                  .n = n,
                  .k = k,
                  .weight = {},
                  .bias = std::vector<float>(bias ? static_cast<size_t>(n) : 0)};
  };
  const int64_t q = config.num_heads * config.head_dim;
  const int64_t kv = config.num_kv_heads * config.head_dim;
  const int64_t ffn = config.intermediate_size;
  block.q = matrix(attention + "q_proj", q, config.hidden_size, config.qkv_bias);
  block.k = matrix(attention + "k_proj", kv, config.hidden_size, config.qkv_bias);
  block.v = matrix(attention + "v_proj", kv, config.hidden_size, config.qkv_bias);
  block.o = matrix(attention + "o_proj", config.hidden_size, q, config.o_bias);
  block.gate = matrix(mlp + "gate_proj", ffn, config.hidden_size, config.mlp_bias);
  block.up = matrix(mlp + "up_proj", ffn, config.hidden_size, config.mlp_bias);
  block.down = matrix(mlp + "down_proj", config.hidden_size, ffn, config.mlp_bias);
  return block;
}

std::vector<Norm> Norms(const BlockWeights& block) {
  const std::string layer = fmt::format("model.layers.{}.", block.layer_idx);
  std::vector<Norm> norms = {
      {layer + "input_layernorm.weight", &BlockWeights::input_norm},
      {layer + "post_attention_layernorm.weight", &BlockWeights::post_attention_norm}};
  if (!block.q_norm.empty()) {
    norms.push_back({layer + "self_attn.q_norm.weight", &BlockWeights::q_norm});
    norms.push_back({layer + "self_attn.k_norm.weight", &BlockWeights::k_norm});
  }
  return norms;
}

std::vector<std::string> TensorNames(const BlockWeights& block) {
  std::vector<std::string> names;
  for (const Norm& norm : Norms(block)) names.push_back(norm.name);
  for (const Matrix* matrix : Matrices(block)) {
    names.push_back(matrix->name + ".weight");
    if (!matrix->bias.empty()) names.push_back(matrix->name + ".bias");
  }
  return names;
}

absl::StatusOr<BlockWeights> LoadBlock(const Checkpoint& checkpoint, const ModelConfig& config,
                                       int64_t layer_idx, ThreadPool* pool) {
  BlockWeights block = EmptyBlock(config, layer_idx);
  for (const Norm& norm : Norms(block)) {
    std::vector<float>& values = block.*norm.member;
    const auto size = static_cast<int64_t>(values.size());
    NIBBLE_ASSIGN_OR_RETURN(values, LoadFinite(checkpoint, norm.name, {size}, pool));
  }
  for (Matrix* matrix : Matrices(block)) {
    NIBBLE_ASSIGN_OR_RETURN(matrix->weight, LoadFinite(checkpoint, matrix->name + ".weight",
                                                       {matrix->n, matrix->k}, pool));
    if (matrix->bias.empty()) continue;
    NIBBLE_ASSIGN_OR_RETURN(matrix->bias,
                            LoadFinite(checkpoint, matrix->name + ".bias", {matrix->n}, pool));
  }
  return block;
}

BlockWeights Dequantized(const QuantizedBlock& block) {
  BlockWeights weights = block.weights;
  const auto matrices = Matrices(weights);
  for (size_t i = 0; i < kNumMatrices; ++i) matrices[i]->weight = Dequantize(block.matrices[i]);
  return weights;
}

}  // namespace nibble::quantize
