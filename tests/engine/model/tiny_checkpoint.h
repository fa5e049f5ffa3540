// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A random Llama of one layer (or more) in memory, to be damaged and written to a temporary
// directory.
#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "fmt/core.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "base/dtype.h"
#include "engine/model/compressed_tensors.h"
#include "engine/model/safetensors_writer.h"
#include "tests/testing/random.h"
#include "tests/testing/temp_dir.h"

namespace nibble::testing {

struct TinyTensor {
  std::vector<int64_t> shape;
  std::vector<float> values;  // written as float32, unless raw is not empty
  DType dtype = DType::kF32;
  std::vector<uint8_t> raw;
};

struct TinyCheckpoint {
  static constexpr int64_t kHidden = 128;
  static constexpr int64_t kIntermediate = 256;
  static constexpr int64_t kQSize = 128;  // 2 heads of 64
  static constexpr int64_t kKvSize = 64;  // 1 KV head
  static constexpr int64_t kVocab = 96;

  nlohmann::json config = {{"architectures", {"LlamaForCausalLM"}},
                           {"model_type", "llama"},
                           {"hidden_size", kHidden},
                           {"intermediate_size", kIntermediate},
                           {"num_hidden_layers", 1},
                           {"num_attention_heads", 2},
                           {"num_key_value_heads", 1},
                           {"head_dim", 64},
                           {"vocab_size", kVocab},
                           {"max_position_embeddings", 64},
                           {"rms_norm_eps", 1e-5},
                           {"rope_theta", 10000.0},
                           {"hidden_act", "silu"},
                           {"tie_word_embeddings", false},
                           {"torch_dtype", "float32"}};
  std::map<std::string, TinyTensor> tensors;
  std::map<std::string, kernels::Int4Weight> packed;  // by module
  int64_t packed_group_size = 128;

  explicit TinyCheckpoint(int64_t num_layers = 1) {
    config["num_hidden_layers"] = num_layers;
    Random random(11);
    const auto add = [&](const std::string& name, std::vector<int64_t> shape, float deviation,
                         float mean = 0.0F) {
      int64_t count = 1;
      for (const int64_t size : shape) count *= size;
      TinyTensor tensor{.shape = std::move(shape), .values = random.Normals(count, deviation)};
      for (float& value : tensor.values) value += mean;
      tensors[name] = std::move(tensor);
    };
    add("model.embed_tokens.weight", {kVocab, kHidden}, 1.0F);
    add("lm_head.weight", {kVocab, kHidden}, 0.2F);
    add("model.norm.weight", {kHidden}, 0.1F, 1.0F);
    for (int64_t l = 0; l < num_layers; ++l) {
      const std::string layer = fmt::format("model.layers.{}.", l);
      add(layer + "input_layernorm.weight", {kHidden}, 0.1F, 1.0F);
      add(layer + "post_attention_layernorm.weight", {kHidden}, 0.1F, 1.0F);
      add(layer + "self_attn.q_proj.weight", {kQSize, kHidden}, 0.1F);
      add(layer + "self_attn.k_proj.weight", {kKvSize, kHidden}, 0.1F);
      add(layer + "self_attn.v_proj.weight", {kKvSize, kHidden}, 0.1F);
      add(layer + "self_attn.o_proj.weight", {kHidden, kQSize}, 0.1F);
      add(layer + "mlp.gate_proj.weight", {kIntermediate, kHidden}, 0.1F);
      add(layer + "mlp.up_proj.weight", {kIntermediate, kHidden}, 0.1F);
      add(layer + "mlp.down_proj.weight", {kHidden, kIntermediate}, 0.1F);
    }
  }

  // Makes a Mixtral of it. Call before tensors are changed.
  void UseExperts(int64_t num_experts, int64_t num_experts_per_tok) {
    config["architectures"] = {"MixtralForCausalLM"};
    config["model_type"] = "mixtral";
    config["num_local_experts"] = num_experts;
    config["num_experts_per_tok"] = num_experts_per_tok;
    Random random(12);
    for (int64_t l = 0; l < config["num_hidden_layers"].get<int64_t>(); ++l) {
      const std::string layer = fmt::format("model.layers.{}.", l);
      for (const char* name : {"gate_proj", "up_proj", "down_proj"}) {
        tensors.erase(fmt::format("{}mlp.{}.weight", layer, name));
      }
      const std::string moe = layer + "block_sparse_moe.";
      tensors[moe + "gate.weight"] = {.shape = {num_experts, kHidden},
                                      .values = random.Normals(num_experts * kHidden, 0.1F)};
      for (int64_t e = 0; e < num_experts; ++e) {
        const std::string expert = fmt::format("{}experts.{}.", moe, e);
        const auto add = [&](const char* name, int64_t n, int64_t k) {
          tensors[expert + name] = {.shape = {n, k}, .values = random.Normals(n * k, 0.1F)};
        };
        add("w1.weight", kIntermediate, kHidden);
        add("w2.weight", kHidden, kIntermediate);
        add("w3.weight", kIntermediate, kHidden);
      }
    }
  }

  static std::vector<std::string> LinearModules() {
    std::vector<std::string> names;
    for (const char* name : {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                             "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}) {
      names.push_back(std::string("model.layers.0.") + name);
    }
    return names;
  }

  // Stores `module` as `weight` says instead of plain.
  void Pack(const std::string& module, kernels::Int4Weight weight) {
    tensors.erase(module + ".weight");
    packed[module] = std::move(weight);
  }

  // Writes config.json and model.safetensors to a directory that is this process' own and goes with
  // it; returns its path.
  std::string Write(const std::string& name) const {
    static const TempDir folder;
    const std::string dir = folder.File(name);
    std::filesystem::remove_all(dir);
    std::filesystem::create_directories(dir);
    std::ofstream(dir + "/config.json") << config.dump();
    std::vector<engine::TensorSpec> specs;
    for (const auto& [tensor_name, tensor] : tensors) {
      specs.push_back({.name = tensor_name, .dtype = tensor.dtype, .shape = tensor.shape});
    }
    for (const auto& [module, weight] : packed) {
      for (engine::TensorSpec& spec : engine::PackedInt4Specs(
               {.name = module, .n = weight.n, .k = weight.k, .group_size = packed_group_size})) {
        specs.push_back(std::move(spec));
      }
    }
    auto writer = engine::SafetensorsWriter::Create(dir, std::move(specs));
    EXPECT_TRUE(writer.ok()) << writer.status();
    for (const auto& [tensor_name, tensor] : tensors) {
      std::vector<uint8_t> bytes = tensor.raw;
      if (bytes.empty()) {
        bytes.resize(tensor.values.size() * sizeof(float));
        std::memcpy(bytes.data(), tensor.values.data(), bytes.size());
      }
      const absl::Status status = writer->Write(tensor_name, bytes);
      EXPECT_TRUE(status.ok()) << status;
    }
    for (const auto& [module, weight] : packed) {
      const absl::Status status = engine::WritePackedInt4(module, weight, &*writer);
      EXPECT_TRUE(status.ok()) << status;
    }
    const absl::Status status = writer->Finish();
    EXPECT_TRUE(status.ok()) << status;
    return dir;
  }
};

}  // namespace nibble::testing
