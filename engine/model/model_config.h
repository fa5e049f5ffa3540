// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// config.json of the supported architectures in native types.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "base/status.h"
#include "engine/model/quantization_config.h"
#include "kernels/rope/rope.h"

namespace nibble::engine {

enum class Architecture { kLlama, kMistral, kQwen2, kQwen3, kMixtral, kQwen2Moe, kQwen3Moe };

std::string_view ToString(Architecture architecture);

// The feed-forward layers that are mixtures of experts.
struct MoeConfig {
  int64_t num_experts = 0;          // E >= 2
  int64_t num_experts_per_tok = 0;  // k, 1..E
  int64_t intermediate_size = 0;    // of one expert
  // Weights of a token's experts are divided by their sum; else they are what the softmax over all
  // experts gave.
  bool norm_topk_prob = true;
  int64_t shared_expert_intermediate_size = 0;  // 0: no shared expert
  // Layer l has experts; the others are dense, of ModelConfig::intermediate_size. [num_layers]
  std::vector<bool> is_moe_layer;

  // Of one layer with so many experts: these, router, shared expert and its gate.
  int64_t CountParameters(int64_t hidden_size, int64_t experts) const;
};

struct ModelConfig {
  Architecture architecture = Architecture::kLlama;
  std::string model_type;  // as the file says, for messages
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;  // of dense layers
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;  // explicit, or hidden_size / num_heads
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 0;
  float rms_norm_eps = 1e-5F;
  kernels::RopeConfig rope;
  bool tie_word_embeddings = false;
  bool qkv_bias = false;  // Qwen2 (and attention_bias)
  bool o_bias = false;    // attention_bias
  bool mlp_bias = false;
  bool qk_norm = false;  // Qwen3: RMSNorm over each head of q and k before RoPE
  // Layer l attends to at most this many positions; 0: all. [num_layers]
  std::vector<int64_t> sliding_window;
  std::optional<MoeConfig> moe;  // absent: every layer is dense
  DType dtype = DType::kBf16;    // torch_dtype / dtype of the checkpoint
  std::vector<int32_t> eos_token_ids;
  std::optional<int32_t> bos_token_id;
  std::optional<QuantizationConfig> quantization;

  // REQUIRES layer < num_layers.
  bool HasExperts(int64_t layer) const {
    return moe.has_value() && moe->is_moe_layer[static_cast<size_t>(layer)];
  }
  int64_t num_parameters() const;  // of the full-precision model, tied weights once
  // The same with the experts alone that one token goes to.
  int64_t num_active_parameters() const;

 private:
  int64_t CountParameters(int64_t num_experts) const;
};

// Reads `dir`/config.json. UNIMPLEMENTED for an architecture or a value nibble does not do, naming
// it and what is supported; INVALID_ARGUMENT for absurd values (negative, overflowing,
// inconsistent), naming value and limit.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& dir);
// The same from text; `path` is for messages. The fuzz target's entry.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json_text, std::string_view path);

// generation_config.json: sampling defaults and end-of-sequence ids that override config.json's.
// All optional.
struct GenerationConfig {
  std::vector<int32_t> eos_token_ids;
  std::optional<float> temperature;
  std::optional<float> top_p;
  std::optional<int32_t> top_k;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<int64_t> max_new_tokens;
};
// An absent file gives an empty value.
absl::StatusOr<GenerationConfig> LoadGenerationConfig(const std::string& dir);
absl::StatusOr<GenerationConfig> ParseGenerationConfig(std::string_view json_text,
                                                       std::string_view path);

}  // namespace nibble::engine
