// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Random model directories with experts, of a few thousand weights.
#pragma once

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "base/float16.h"
#include "engine/model/safetensors_writer.h"
#include "tests/quantize/tiny_model.h"
#include "tests/testing/random.h"

namespace nibble::quantize::testing {

enum class ExpertForm { kPublished, kFused };

// Two layers of 32 channels, 4 experts of 16 channels of which a token goes to 2. "mixtral",
// "qwen2_moe" (a shared expert of 24 channels; its first layer is dense, of 40) or "qwen3_moe".
// The same weights in both forms.
class MoeModel {
 public:
  MoeModel(const std::string& model_type, ExpertForm form, const std::string& dir)
      : type_(model_type), form_(form), dir_(dir) {
    std::filesystem::create_directories(dir);
    MakeTinyTokenizer(dir);
    std::ofstream(dir + "/config.json") << Config();
    AddMatrix("model.embed_tokens.weight", {kVocab, kHidden});
    AddNorm("model.norm.weight", kHidden);
    AddMatrix("lm_head.weight", {kVocab, kHidden});
    for (int layer = 0; layer < 2; ++layer) AddLayer(layer);
    auto writer = engine::SafetensorsWriter::Create(dir, specs_);
    EXPECT_TRUE(writer.ok()) << writer.status();
    for (size_t i = 0; i < specs_.size(); ++i) {
      EXPECT_TRUE(writer->Write(specs_[i].name, bytes_[i]).ok());
    }
    EXPECT_TRUE(writer->Finish().ok());
  }

 private:
  static constexpr int64_t kHidden = 32;
  static constexpr int64_t kVocab = 31;
  static constexpr int64_t kExperts = 4;
  static constexpr int64_t kExpertChannels = 16;

  nlohmann::json Config() const {
    nlohmann::json config = {{"model_type", type_},       {"hidden_size", kHidden},
                             {"num_hidden_layers", 2},    {"num_attention_heads", 4},
                             {"num_key_value_heads", 2},  {"head_dim", 8},
                             {"vocab_size", kVocab},      {"max_position_embeddings", 128},
                             {"rms_norm_eps", 1e-5},      {"rope_theta", 10000.0},
                             {"hidden_act", "silu"},      {"tie_word_embeddings", false},
                             {"torch_dtype", "bfloat16"}, {"bos_token_id", 1},
                             {"eos_token_id", 2},         {"num_experts_per_tok", 2}};
    if (type_ == "mixtral") {
      config["architectures"] = {"MixtralForCausalLM"};
      config["num_local_experts"] = kExperts;
      config["intermediate_size"] = kExpertChannels;
      return config;
    }
    config["num_experts"] = kExperts;
    config["moe_intermediate_size"] = kExpertChannels;
    config["intermediate_size"] = 40;
    config["norm_topk_prob"] = type_ == "qwen3_moe";
    config["architectures"] = {type_ == "qwen3_moe" ? "Qwen3MoeForCausalLM"
                                                    : "Qwen2MoeForCausalLM"};
    if (type_ == "qwen2_moe") {
      config["shared_expert_intermediate_size"] = 24;
      config["mlp_only_layers"] = {0};
    }
    return config;
  }

  std::vector<uint8_t> RandomBytes(int64_t count, float deviation, float mean) {
    std::vector<uint8_t> bytes;
    for (int64_t i = 0; i < count; ++i) {
      const BFloat16 value = ToBFloat16(mean + deviation * random_.Normal());
      const auto* const begin = reinterpret_cast<const uint8_t*>(&value);
      bytes.insert(bytes.end(), begin, begin + sizeof(value));
    }
    return bytes;
  }
  void Add(const std::string& name, std::vector<int64_t> shape, std::vector<uint8_t> bytes) {
    specs_.push_back({name, DType::kBf16, std::move(shape)});
    bytes_.push_back(std::move(bytes));
  }
  void AddNorm(const std::string& name, int64_t size) {
    Add(name, {size}, RandomBytes(size, 0.1F, 1.0F));
  }
  void AddMatrix(const std::string& name, std::vector<int64_t> shape) {
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    Add(name, std::move(shape), RandomBytes(count, 0.3F, 0.0F));
  }

  void AddLayer(int layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    AddNorm(prefix + "input_layernorm.weight", kHidden);
    AddNorm(prefix + "post_attention_layernorm.weight", kHidden);
    const std::string attention = prefix + "self_attn.";
    AddMatrix(attention + "q_proj.weight", {32, kHidden});
    AddMatrix(attention + "k_proj.weight", {16, kHidden});
    AddMatrix(attention + "v_proj.weight", {16, kHidden});
    AddMatrix(attention + "o_proj.weight", {kHidden, 32});
    if (type_ == "qwen3_moe") {
      AddNorm(attention + "q_norm.weight", 8);
      AddNorm(attention + "k_norm.weight", 8);
    }
    if (type_ == "qwen2_moe") {
      Add(attention + "q_proj.bias", {32}, RandomBytes(32, 0.3F, 0.0F));
      Add(attention + "k_proj.bias", {16}, RandomBytes(16, 0.3F, 0.0F));
      Add(attention + "v_proj.bias", {16}, RandomBytes(16, 0.3F, 0.0F));
    }
    if (type_ == "qwen2_moe" && layer == 0) {
      AddMatrix(prefix + "mlp.gate_proj.weight", {40, kHidden});
      AddMatrix(prefix + "mlp.up_proj.weight", {40, kHidden});
      AddMatrix(prefix + "mlp.down_proj.weight", {kHidden, 40});
      return;
    }
    AddExperts(prefix);
    if (type_ != "qwen2_moe") return;
    AddMatrix(prefix + "mlp.shared_expert.gate_proj.weight", {24, kHidden});
    AddMatrix(prefix + "mlp.shared_expert.up_proj.weight", {24, kHidden});
    AddMatrix(prefix + "mlp.shared_expert.down_proj.weight", {kHidden, 24});
    AddMatrix(prefix + "mlp.shared_expert_gate.weight", {1, kHidden});
  }

  void AddExperts(const std::string& prefix) {
    const bool mixtral = type_ == "mixtral";
    const bool fused = form_ == ExpertForm::kFused;
    const std::string mlp = prefix + (mixtral && !fused ? "block_sparse_moe." : "mlp.");
    AddMatrix(mlp + "gate.weight", {kExperts, kHidden});
    std::vector<uint8_t> gate_up;
    std::vector<uint8_t> down;
    for (int64_t e = 0; e < kExperts; ++e) {
      const std::string expert = mlp + "experts." + std::to_string(e) + ".";
      const std::vector<uint8_t> parts[] = {RandomBytes(kExpertChannels * kHidden, 0.3F, 0.0F),
                                            RandomBytes(kExpertChannels * kHidden, 0.3F, 0.0F),
                                            RandomBytes(kExpertChannels * kHidden, 0.3F, 0.0F)};
      gate_up.insert(gate_up.end(), parts[0].begin(), parts[0].end());
      gate_up.insert(gate_up.end(), parts[1].begin(), parts[1].end());
      down.insert(down.end(), parts[2].begin(), parts[2].end());
      if (fused) continue;
      Add(expert + (mixtral ? "w1.weight" : "gate_proj.weight"), {kExpertChannels, kHidden},
          parts[0]);
      Add(expert + (mixtral ? "w3.weight" : "up_proj.weight"), {kExpertChannels, kHidden},
          parts[1]);
      Add(expert + (mixtral ? "w2.weight" : "down_proj.weight"), {kHidden, kExpertChannels},
          parts[2]);
    }
    if (!fused) return;
    Add(mlp + "experts.gate_up_proj", {kExperts, 2 * kExpertChannels, kHidden}, gate_up);
    Add(mlp + "experts.down_proj", {kExperts, kHidden, kExpertChannels}, down);
  }

  const std::string type_;
  const ExpertForm form_;
  const std::string dir_;
  nibble::testing::Random random_{11};
  std::vector<engine::TensorSpec> specs_;
  std::vector<std::vector<uint8_t>> bytes_;
};

}  // namespace nibble::quantize::testing
