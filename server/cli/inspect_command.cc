// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// nibble inspect
#include <algorithm>
#include <cstdio>

#include "nlohmann/json.hpp"

#include "engine/model/model_config.h"
#include "engine/model/safetensors.h"
#include "engine/tokenizer/tokenizer.h"
#include "server/cli/commands.h"
#include "server/cli/inspect_experts.h"
#include "server/cli/model_setup.h"

namespace nibble::cli {
namespace {

// "w4a8": of the first group of modules that is quantized.
std::string QuantizationName(const engine::ModelConfig& config) {
  if (!config.quantization.has_value()) return "none";
  const engine::WeightScheme* scheme = config.quantization->main_scheme();
  return fmt::format("w{}a{}", scheme->weight_bits, scheme->activation_bits);
}

nlohmann::ordered_json Describe(const engine::ModelConfig& config,
                                const engine::Checkpoint& checkpoint,
                                const engine::Tokenizer& tokenizer, const InspectOptions& options) {
  nlohmann::ordered_json json = {{"model", options.model},
                                 {"architecture", engine::ToString(config.architecture)},
                                 {"parameters", config.num_parameters()},
                                 {"layers", config.num_layers},
                                 {"hidden_size", config.hidden_size},
                                 {"intermediate_size", config.intermediate_size},
                                 {"heads", config.num_heads},
                                 {"kv_heads", config.num_kv_heads},
                                 {"head_dim", config.head_dim},
                                 {"vocab_size", config.vocab_size},
                                 {"tokenizer_vocab_size", tokenizer.vocab_size()},
                                 {"max_position_embeddings", config.max_position_embeddings},
                                 {"tie_word_embeddings", config.tie_word_embeddings},
                                 {"dtype", ToString(config.dtype)},
                                 {"quantization", QuantizationName(config)},
                                 {"tensors", checkpoint.tensors().size()},
                                 {"tensor_bytes", checkpoint.total_bytes()}};
  if (config.quantization.has_value()) {
    json["quantization_method"] = config.quantization->method;
    const engine::WeightScheme* scheme = config.quantization->main_scheme();
    // 0 in memory, null here: one scale per output channel.
    json["group_size"] =
        scheme->group_size > 0 ? nlohmann::ordered_json(scheme->group_size) : nullptr;
  }
  if (config.moe.has_value()) {
    const engine::MoeConfig& moe = *config.moe;
    json["active_parameters"] = config.num_active_parameters();
    json["moe_layers"] = std::count(moe.is_moe_layer.begin(), moe.is_moe_layer.end(), true);
    json["experts"] = moe.num_experts;
    json["experts_per_token"] = moe.num_experts_per_tok;
    json["expert_intermediate_size"] = moe.intermediate_size;
    json["shared_expert_intermediate_size"] = moe.shared_expert_intermediate_size;
  }
  if (!options.tensors) return json;
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const engine::TensorView& tensor : checkpoint.tensors()) {
    list.push_back(
        {{"name", tensor.name}, {"dtype", ToString(tensor.dtype)}, {"shape", tensor.shape}});
  }
  json["tensor_list"] = std::move(list);
  return json;
}

void PrintText(const nlohmann::ordered_json& json) {
  for (const auto& [key, value] : json.items()) {
    if (key == "tensor_list") continue;
    std::string text = value.is_string() ? value.get<std::string>() : value.dump();
    if (key == "parameters" || key == "active_parameters")
      text += fmt::format("  ({})", HumanCount(value.get<int64_t>()));
    if (key == "tensor_bytes") text += fmt::format("  ({})", HumanBytes(value.get<int64_t>()));
    fmt::print("{:<24} {}\n", key, text);
  }
  if (!json.contains("tensor_list")) return;
  for (const auto& tensor : json["tensor_list"]) {
    fmt::print("  {:<60} {:<9} {}\n", tensor["name"].get<std::string>(),
               tensor["dtype"].get<std::string>(), tensor["shape"].dump());
  }
}

absl::Status Inspect(const InspectOptions& options) {
  if (options.model.empty()) {
    return InvalidArgument(
        "MODEL is missing: name a model directory, or with --experts a recorded load or a server");
  }
  if (options.expert_parallel_size != 0 || options.num_redundant_experts != 0) {
    return InvalidArgument(
        "--expert-parallel-size and --num-redundant-experts go with --experts FILE or URL");
  }
  NIBBLE_ASSIGN_OR_RETURN(const engine::ModelConfig config, engine::LoadModelConfig(options.model));
  NIBBLE_ASSIGN_OR_RETURN(const engine::Checkpoint checkpoint,
                          engine::Checkpoint::Open(options.model));
  NIBBLE_ASSIGN_OR_RETURN(const auto tokenizer, engine::Tokenizer::Load(options.model));
  const nlohmann::ordered_json json = Describe(config, checkpoint, *tokenizer, options);
  if (options.json) {
    fmt::print("{}\n", DumpJson(json));
  } else {
    PrintText(json);
  }
  return absl::OkStatus();
}

}  // namespace

int RunInspect(const InspectOptions& options) {
  const absl::Status status = options.experts.empty() ? Inspect(options) : InspectExperts(options);
  return status.ok() ? 0 : Fail(status);
}

}  // namespace nibble::cli
