// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// quantization_config of all methods, and which module gets which scheme.

#include "engine/model/quantization_config.h"

#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/model/compressed_tensors.h"
#include "engine/model/model_config.h"

namespace nibble::engine {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr const char* kQ = "model.layers.0.self_attn.q_proj";
constexpr const char* kDown = "model.layers.1.mlp.down_proj";

absl::StatusOr<ModelConfig> ParseWith(const json& quantization) {
  const json config = {{"architectures", {"LlamaForCausalLM"}},
                       {"model_type", "llama"},
                       {"hidden_size", 64},
                       {"intermediate_size", 96},
                       {"num_hidden_layers", 4},
                       {"num_attention_heads", 4},
                       {"vocab_size", 128},
                       {"quantization_config", quantization}};
  return ParseModelConfig(config.dump(), "config.json");
}

QuantizationConfig Parse(const json& quantization) {
  const auto config = ParseWith(quantization);
  EXPECT_TRUE(config.ok()) << config.status();
  if (!config.ok() || !config->quantization.has_value()) return {};
  return *config->quantization;
}

const WeightScheme* Find(const QuantizationConfig& config, std::string_view module) {
  const auto scheme = config.Find(module);
  EXPECT_TRUE(scheme.ok()) << scheme.status();
  return scheme.ok() ? *scheme : nullptr;
}

void ExpectScheme(const json& quantization, const char* module, const WeightScheme& want) {
  const QuantizationConfig config = Parse(quantization);
  const WeightScheme* scheme = Find(config, module);
  ASSERT_NE(scheme, nullptr) << quantization;
  EXPECT_EQ(*scheme, want) << quantization << Describe(*scheme);
}

// `change` is merged into `good` (null removes a key: JSON merge patch).
void ExpectRefused(const json& good, const json& change, absl::StatusCode code,
                   const std::string& part) {
  json quantization = good;
  quantization.merge_patch(change);
  const auto config = ParseWith(quantization);
  ASSERT_FALSE(config.ok()) << quantization;
  EXPECT_EQ(config.status().code(), code) << config.status();
  EXPECT_THAT(std::string(config.status().message()),
              AllOf(HasSubstr("config.json: quantization_config"), HasSubstr(part)));
}
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

TEST(QuantizationConfigTest, WhatNibbleWritesIsReadBack) {
  const CheckpointScheme schemes[] = {
      {.group_size = 32}, {.group_size = 64}, {.group_size = 128},
      {.group_size = 0},  {.weight_bits = 8}, {.group_size = 128, .activation_bits = 16}};
  for (CheckpointScheme written : schemes) {
    written.ignore = {"lm_head"};
    const json quantization = QuantizationConfigJson(written);
    const bool int8 = written.weight_bits == 8;
    ExpectScheme(quantization, kQ,
                 {.layout = int8 ? WeightLayout::kBytes : WeightLayout::kPacked,
                  .weight_bits = written.weight_bits,
                  .group_size = int8 ? 0 : written.group_size,
                  .activation_bits = written.activation_bits});
    EXPECT_EQ(Find(Parse(quantization), "lm_head"), nullptr);
  }
}

TEST(QuantizationConfigTest, CompressedTensorsForms) {
  json quantization = QuantizationConfigJson({.group_size = 32, .activation_bits = 16});
  json& group = quantization["config_groups"]["group_0"];
  json& weights = group["weights"];
  weights["symmetric"] = false;
  weights["actorder"] = "group";
  ExpectScheme(quantization, kQ, {.group_size = 32, .symmetric = false, .act_order = true});
  weights["actorder"] = "weight";
  group["format"] = "int-quantized";
  ExpectScheme(quantization, kQ,
               {.layout = WeightLayout::kBytes, .group_size = 32, .symmetric = false});
  // A group without a format of its own has that of the whole; absent values have the package's
  // defaults.
  quantization = {
      {"quant_method", "compressed-tensors"},
      {"format", "pack-quantized"},
      {"config_groups",
       {{"a", {{"targets", {"Linear"}}, {"weights", {{"num_bits", 4}, {"group_size", 64}}}}}}}};
  ExpectScheme(quantization, kQ, {.group_size = 64});
  quantization["config_groups"]["a"]["weights"]["group_size"] = -1;
  ExpectScheme(quantization, kQ, {.group_size = 0});
}

TEST(QuantizationConfigTest, ModulesFindTheirGroup) {
  json quantization = QuantizationConfigJson({.group_size = 128, .ignore = {"lm_head"}});
  const json group = quantization["config_groups"]["group_0"];
  json& groups = quantization["config_groups"];
  groups["by_regex"] = group;
  groups["by_regex"]["targets"] = {"re:.*down_proj$", "re:model\\.layers\\.3\\."};
  groups["by_regex"]["weights"]["group_size"] = 64;
  groups["by_name"] = group;
  groups["by_name"]["targets"] = {kDown};
  groups["by_name"]["weights"]["group_size"] = 32;
  quantization["ignore"].push_back("re:.*\\.2\\.self_attn.*");
  const QuantizationConfig config = Parse(quantization);
  const std::pair<const char*, int64_t> want[] = {
      {kQ, 128},
      {kDown, 32},
      {"model.layers.0.mlp.down_proj", 64},
      {"model.layers.3.self_attn.q_proj", 64},
      {"model.layers.2.self_attn.o_proj", -1},
      {"model.layers.2.mlp.up_proj", 128},
      {"other.model.layers.3.up_proj", 128},  // expressions begin where the name begins
      {"lm_head", -1}};
  for (const auto& [module, group_size] : want) {
    const WeightScheme* scheme = Find(config, module);
    EXPECT_EQ(scheme == nullptr ? -1 : scheme->group_size, group_size) << module;
  }
  const auto embedding = config.Find("model.embed_tokens", "Embedding");
  ASSERT_TRUE(embedding.ok());
  EXPECT_EQ(*embedding, nullptr);

  groups["contradicts"] = group;
  groups["contradicts"]["targets"] = {"re:.*down.*"};
  const auto ambiguous = Parse(quantization).Find("model.layers.0.mlp.down_proj");
  EXPECT_EQ(ambiguous.status().code(), kUnimplemented);
  EXPECT_THAT(std::string(ambiguous.status().message()),
              AllOf(HasSubstr("model.layers.0.mlp.down_proj"), HasSubstr("re:.*down.*"),
                    HasSubstr("re:.*down_proj$")));
}

TEST(QuantizationConfigTest, PatternThatRunsForEverIsAnError) {
  json quantization = QuantizationConfigJson({});
  quantization["ignore"] = {"re:(a+)+$"};
  const auto found = Parse(quantization).Find(std::string(64, 'a') + "b");
  EXPECT_EQ(found.status().code(), absl::StatusCode::kResourceExhausted) << found.status();
}

// One expression may take steps that many together may not.
TEST(QuantizationConfigTest, ExpressionsShareTheirSteps) {
  json quantization = QuantizationConfigJson({});
  const std::string name = std::string(12, 'a') + "b";  // 2^12 ways to fail
  quantization["ignore"] = {"re:(a+)+$"};
  EXPECT_NE(Find(Parse(quantization), name), nullptr);
  const QuantizationConfig one = Parse(quantization);
  quantization["ignore"] = std::vector<std::string>(5000, "re:(a+)+$");
  const QuantizationConfig many = Parse(quantization);
  EXPECT_EQ(many.regex_bytes(), 5000 * one.regex_bytes());
  const auto found = many.Find(name);
  EXPECT_EQ(found.status().code(), absl::StatusCode::kResourceExhausted) << found.status();
  // What plain expressions take is there still.
  quantization["ignore"] = std::vector<std::string>(5000, "re:.*\\.layers\\.7\\..*down_proj$");
  EXPECT_NE(Find(Parse(quantization), kDown), nullptr);
}

TEST(QuantizationConfigTest, LeastBits) {
  json quantization = QuantizationConfigJson({.weight_bits = 8});
  EXPECT_EQ(Parse(quantization).min_weight_bits(), 8);
  quantization["config_groups"]["z"] = QuantizationConfigJson({})["config_groups"]["group_0"];
  quantization["config_groups"]["z"]["targets"] = {"re:.*down_proj"};
  EXPECT_EQ(Parse(quantization).main_scheme()->weight_bits, 8);
  EXPECT_EQ(Parse(quantization).min_weight_bits(), 4);
}

TEST(QuantizationConfigTest, CompressedTensorsRefusals) {
  const json good = QuantizationConfigJson({});
  const auto group = [](const json& change) {
    return json{{"config_groups", {{"group_0", change}}}};
  };
  const auto weights = [&group](const json& change) { return group({{"weights", change}}); };
  const std::pair<json, std::string> unsupported[] = {
      {{{"quant_method", "fp8"}}, "quant_method \"fp8\""},
      {{{"quant_method", "bitsandbytes"}}, "supported: compressed-tensors, gptq, awq, auto-round"},
      {{{"quant_method", nullptr}}, "quant_method null"},
      {{{"kv_cache_scheme", {{"num_bits", 8}}}}, "kv_cache_scheme"},
      {{{"quantization_status", "frozen"}}, "frozen"},
      {{{"sparsity_config", {{"format", "sparse-24-bitmask"}}}}, "sparse-24-bitmask"},
      {{{"transform_config", {{"config_groups", {{"a", 1}}}}}}, "transform_config"},
      {group({{"format", "marlin-24"}}), "marlin-24"},
      {group({{"format", "nvfp4-pack-quantized"}}), "nvfp4-pack-quantized"},
      {group({{"format", "float-quantized"}}), "float-quantized"},
      {weights({{"num_bits", 3}}), "num_bits 3"},
      {weights({{"num_bits", 8}, {"strategy", "channel"}, {"group_size", nullptr}}),
       "8-bit weights of format pack-quantized"},
      {weights({{"type", "float"}}), "type \"float\""},
      {weights({{"strategy", "tensor"}}), "strategy \"tensor\""},
      {weights({{"strategy", "block"}}), "strategy \"block\""},
      {weights({{"actorder", "backwards"}}), "actorder \"backwards\""},
      {weights({{"dynamic", true}}), "dynamic true"},
      {group({{"input_activations", {{"dynamic", false}}}}), "dynamic false"},
      {group({{"input_activations", {{"num_bits", 4}}}}), "num_bits 4"},
      {group({{"input_activations", {{"type", "float"}}}}), "type \"float\""},
      {group({{"input_activations", {{"strategy", "tensor"}}}}), "strategy \"tensor\""},
      {group({{"input_activations", {{"symmetric", false}}}}), "symmetric false"},
      {group({{"output_activations", {{"num_bits", 8}}}}), "output_activations"},
  };
  for (const auto& [change, part] : unsupported) ExpectRefused(good, change, kUnimplemented, part);
  const json good8 = QuantizationConfigJson({.weight_bits = 8});
  ExpectRefused(good8, weights({{"symmetric", false}}), kUnimplemented, "symmetric false");
  ExpectRefused(good8, weights({{"strategy", "group"}, {"group_size", 64}}), kUnimplemented,
                "strategy \"group\"");
  ExpectRefused(good8, group({{"input_activations", nullptr}}), kUnimplemented,
                "8-bit weights with 16-bit activations");
  const std::pair<json, std::string> invalid[] = {
      {{{"config_groups", nullptr}}, "0 config_groups"},
      {weights({{"group_size", -2}}), "group_size is -2"},
      {weights({{"group_size", 1 << 20}}), "group_size is 1048576"},
      {weights({{"group_size", 100}}), "multiple of 8"},
      {weights({{"group_size", nullptr}}), "group_size is missing"},
      {weights(nullptr), "weights is missing"},
      {group({{"targets", nullptr}}), "targets is missing"},
      {group({{"targets", {"re:("}}}), "pattern 're:('"},
      {group({{"targets", {std::string("re:") + std::string(5000, 'a')}}}), "5000 bytes"},
      {group(5), "group_0\" is 5"},
      {{{"ignore", {1}}}, "ignore holds 1"},
      {{{"ignore", {"re:[z-a]"}}}, "ignore: pattern"},
      {{{"ignore", std::vector<std::string>(70, std::string("re:") + std::string(4000, 'a'))}},
       "expressions of 280210 bytes, the limit is 262144"},
  };
  for (const auto& [change, part] : invalid) ExpectRefused(good, change, kInvalid, part);
}

TEST(QuantizationConfigTest, Gptq) {
  const json good = {{"quant_method", "gptq"},
                     {"bits", 4},
                     {"group_size", 128},
                     {"desc_act", false},
                     {"sym", true}};
  ExpectScheme(good, kQ, {.layout = WeightLayout::kGptq, .group_size = 128});
  const auto with = [&good](const json& change) {
    json changed = good;
    changed.merge_patch(change);
    return changed;
  };
  ExpectScheme(with({{"checkpoint_format", "gptq_v2"}}), kQ,
               {.layout = WeightLayout::kGptq, .zeros_less_one = false});
  ExpectScheme(with({{"group_size", -1}, {"desc_act", true}}), kQ,
               {.layout = WeightLayout::kGptq, .group_size = 0, .act_order = true});
  const json dynamic = with({{"dynamic",
                              {{"-:.*\\.q_proj", json::object()},
                               {"+:.*down_proj", {{"group_size", 32}}},
                               {"lm_head", {{"bits", 4}}},
                               {".*k_proj", {{"desc_act", true}, {"format", "gptq_v2"}}},
                               {".*v_proj", {{"bits", 16}, {"format", "any"}}}}}});
  EXPECT_EQ(Find(Parse(dynamic), kQ), nullptr);
  ExpectScheme(dynamic, kDown, {.layout = WeightLayout::kGptq, .group_size = 32});
  ExpectScheme(dynamic, "model.layers.0.self_attn.k_proj",
               {.layout = WeightLayout::kGptq, .act_order = true, .zeros_less_one = false});
  EXPECT_EQ(Find(Parse(dynamic), "model.layers.0.self_attn.v_proj"), nullptr);
  EXPECT_TRUE(Parse(good).tensors_decide);

  const std::pair<json, std::string> unsupported[] = {
      {{{"bits", 8}}, "bits 8"},
      {{{"bits", 3}}, "bits 3"},
      {{{"checkpoint_format", "marlin"}}, "checkpoint_format \"marlin\""},
      {{{"format", "bitblas"}}, "format \"bitblas\""},
      {{{"is_marlin_format", true}}, "is_marlin_format"},
      {{{"pack_dtype", "int16"}}, "pack_dtype \"int16\""},
      {{{"adapter", {{"name", "lora"}}}}, "adapter"},
      {{{"dynamic", {{"+:.*", {{"bits", 8}}}}}}, "dynamic \"+:.*\": bits 8"},
      {{{"dynamic", {{"+:.*", {{"format", "marlin"}}}}}}, "dynamic \"+:.*\": format \"marlin\""},
      {{{"dynamic", {{"+:.*", {{"pack_dtype", "int16"}}}}}}, "dynamic \"+:.*\": pack_dtype"},
  };
  for (const auto& [change, part] : unsupported) ExpectRefused(good, change, kUnimplemented, part);
  const std::pair<json, std::string> invalid[] = {
      {{{"bits", nullptr}}, "bits is missing"},
      {{{"bits", "4"}}, "bits is \"4\""},
      {{{"group_size", 0}}, "group_size is 0"},
      {{{"group_size", 1099511627776}}, "1099511627776"},
      {{{"desc_act", 1}}, "desc_act is 1"},
      {{{"dynamic", {{"+:(", json::object()}}}}, "pattern"},
      {{{"dynamic", {{"+:.*", 7}}}}, "is 7, must be an object"},
  };
  for (const auto& [change, part] : invalid) ExpectRefused(good, change, kInvalid, part);
}

TEST(QuantizationConfigTest, Awq) {
  const json good = {{"quant_method", "awq"}, {"bits", 4},
                     {"group_size", 64},      {"zero_point", true},
                     {"version", "gemm"},     {"modules_to_not_convert", {"v"}}};
  const WeightScheme want = {.layout = WeightLayout::kAwq, .group_size = 64};
  ExpectScheme(good, kQ, want);
  ExpectScheme({{"quant_method", "awq"}, {"w_bit", 4}, {"q_group_size", 64}, {"version", "GEMM"}},
               kQ, want);
  for (const char* version : {"gemv", "gemv_fast", "marlin", "exllama"}) {
    ExpectRefused(good, {{"version", version}}, kUnimplemented, version);
  }
  ExpectRefused(good, {{"bits", 8}}, kUnimplemented, "bits 8");
  ExpectRefused(good, {{"backend", "llm-awq"}}, kUnimplemented, "llm-awq");
  ExpectRefused(good, {{"group_size", 12}}, kInvalid, "multiple of 8");
}

TEST(QuantizationConfigTest, AutoRound) {
  const json good = {
      {"quant_method", "auto-round"},
      {"bits", 4},
      {"group_size", 128},
      {"sym", true},
      {"data_type", "int"},
      {"packing_format", "auto_round:auto_gptq"},
      {"extra_config", {{"lm_head", {{"bits", 16}}}, {kDown, {{"group_size", 32}}}}}};
  ExpectScheme(good, kQ, {.layout = WeightLayout::kGptq});
  ExpectScheme(good, kDown, {.layout = WeightLayout::kGptq, .group_size = 32});
  EXPECT_EQ(Find(Parse(good), "lm_head"), nullptr);
  json changed = good;
  changed["packing_format"] = "auto_round:auto_awq";
  ExpectScheme(changed, kQ, {.layout = WeightLayout::kAwq, .zeros_less_one = false});
  changed["packing_format"] = "auto_round";
  ExpectScheme(changed, kQ, {.layout = WeightLayout::kGptq, .zeros_less_one = false});
  const std::pair<json, std::string> unsupported[] = {
      {{{"bits", 2}}, "bits 2"},
      {{{"data_type", "mx_fp"}}, "mx_fp"},
      {{{"act_bits", 8}}, "act_bits 8"},
      {{{"packing_format", "auto_round:llm_compressor"}}, "auto_round:llm_compressor"},
      {{{"extra_config", {{"x", {{"bits", 8}}}}}}, "extra_config \"x\": bits 8"},
      {{{"extra_config", {{"x", {{"data_type", "mx_fp"}}}}}}, "extra_config \"x\": data_type"},
      {{{"extra_config", {{"x", {{"act_bits", 8}}}}}}, "extra_config \"x\": act_bits 8"},
  };
  for (const auto& [change, part] : unsupported) ExpectRefused(good, change, kUnimplemented, part);
}

}  // namespace
}  // namespace nibble::engine
