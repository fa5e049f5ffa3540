// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/block.h"

#include <string_view>
#include <utility>

#include "fmt/format.h"

namespace nibble::quantize {
namespace {

using engine::Architecture;
using engine::ModelConfig;

template <typename Pointer, typename Block>
std::vector<Pointer> MatricesOf(Block& block) {
  std::vector<Pointer> matrices = {&block.q, &block.k, &block.v, &block.o};
  const auto add = [&](auto& network) {
    for (const Pointer matrix : {&network.gate, &network.up, &network.down}) {
      matrices.push_back(matrix);
    }
  };
  if (!block.moe) {
    add(block);
  } else {
    for (auto& expert : block.moe->experts) add(expert);
  }
  return matrices;
}

template <typename Pointer, typename Block>
std::vector<Pointer> UnroundedOf(Block& block) {
  if (!block.moe) return {};
  if (!block.moe->has_shared()) return {&block.moe->router};
  return {&block.moe->router, &block.moe->shared_gate};
}

Matrix EmptyMatrix(std::string name, int64_t n, int64_t k, bool bias) {
  return {.name = std::move(name),
          .n = n,
          .k = k,
          .weight = {},
          .bias = std::vector<float>(bias ? static_cast<size_t>(n) : 0)};
}

struct NetworkNames {
  const char* gate = "gate_proj";
  const char* up = "up_proj";
  const char* down = "down_proj";
};
constexpr NetworkNames kMixtralNames = {"w1", "w3", "w2"};

FeedForward EmptyNetwork(std::string_view prefix, const NetworkNames& names, int64_t hidden,
                         int64_t intermediate, bool bias) {
  return {.gate = EmptyMatrix(fmt::format("{}{}", prefix, names.gate), intermediate, hidden, bias),
          .up = EmptyMatrix(fmt::format("{}{}", prefix, names.up), intermediate, hidden, bias),
          .down = EmptyMatrix(fmt::format("{}{}", prefix, names.down), hidden, intermediate, bias)};
}

MoeWeights EmptyMoe(const ModelConfig& config, int64_t layer_idx) {
  const bool is_mixtral = config.architecture == Architecture::kMixtral;
  const std::string prefix =
      fmt::format("model.layers.{}.{}.", layer_idx, is_mixtral ? "block_sparse_moe" : "mlp");
  MoeWeights moe;
  moe.num_experts_per_tok = config.moe->num_experts_per_tok;
  moe.norm_topk_prob = config.moe->norm_topk_prob;
  moe.router = EmptyMatrix(prefix + "gate", config.moe->num_experts, config.hidden_size, false);
  for (int64_t e = 0; e < config.moe->num_experts; ++e) {
    moe.experts.push_back(EmptyNetwork(fmt::format("{}experts.{}.", prefix, e),
                                       is_mixtral ? kMixtralNames : NetworkNames(),
                                       config.hidden_size, config.moe->intermediate_size, false));
  }
  const int64_t shared = config.moe->shared_expert_intermediate_size;
  moe.shared_gate =
      EmptyMatrix(prefix + "shared_expert_gate", shared > 0 ? 1 : 0, config.hidden_size, false);
  if (shared > 0) {
    moe.experts.push_back(
        EmptyNetwork(prefix + "shared_expert.", {}, config.hidden_size, shared, false));
  }
  return moe;
}

}  // namespace

std::vector<Matrix*> Matrices(BlockWeights& block) { return MatricesOf<Matrix*>(block); }
std::vector<const Matrix*> Matrices(const BlockWeights& block) {
  return MatricesOf<const Matrix*>(block);
}

Site SiteOfMatrix(size_t matrix_idx) {
  if (matrix_idx < kAttentionMatrices) return matrix_idx < 3 ? Site::kQkv : Site::kO;
  const bool is_down = (matrix_idx - kAttentionMatrices) % kFeedForwardMatrices == 2;
  return is_down ? Site::kDown : Site::kGateUp;
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
  const int64_t q = config.num_heads * config.head_dim;
  const int64_t kv = config.num_kv_heads * config.head_dim;
  block.q = EmptyMatrix(attention + "q_proj", q, config.hidden_size, config.qkv_bias);
  block.k = EmptyMatrix(attention + "k_proj", kv, config.hidden_size, config.qkv_bias);
  block.v = EmptyMatrix(attention + "v_proj", kv, config.hidden_size, config.qkv_bias);
  block.o = EmptyMatrix(attention + "o_proj", config.hidden_size, q, config.o_bias);
  if (config.moe && config.moe->is_moe_layer[static_cast<size_t>(layer_idx)]) {
    block.moe = EmptyMoe(config, layer_idx);
  } else {
    static_cast<FeedForward&>(block) =
        EmptyNetwork(fmt::format("model.layers.{}.mlp.", layer_idx), {}, config.hidden_size,
                     config.intermediate_size, config.mlp_bias);
  }
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

std::vector<Matrix*> UnroundedMatrices(BlockWeights& block) { return UnroundedOf<Matrix*>(block); }
std::vector<const Matrix*> UnroundedMatrices(const BlockWeights& block) {
  return UnroundedOf<const Matrix*>(block);
}

BlockWeights Dequantized(const QuantizedBlock& block) {
  BlockWeights weights = block.weights;
  const auto matrices = Matrices(weights);
  for (size_t i = 0; i < matrices.size(); ++i) {
    matrices[i]->weight = Dequantize(block.matrices[i]);
  }
  return weights;
}

}  // namespace nibble::quantize
