// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// quantization_config with quant_method compressed-tensors: groups of modules, each with a scheme
// for weights and activations and a form on disk. What nibble does not read is refused by name.

#include "engine/model/model_config_parts.h"

namespace nibble::engine {
namespace {

constexpr size_t kMaxNames = 100'000;  // modules in a list: more than models have
constexpr size_t kMaxGroups = 1024;
constexpr std::string_view kSupported =
    "4-bit int weights in groups or one scale per channel, or 8-bit symmetric int weights with one "
    "scale per channel; activations not quantized or 8-bit int, dynamic, per token";

// Refuses `key` unless it is `wanted`.
void Expect(const char* key, const nlohmann::json& wanted, const nlohmann::json& default_value,
            ConfigReader* reader) {
  const nlohmann::json* found = reader->Find(key);
  const nlohmann::json& value = found == nullptr ? default_value : *found;
  if (value == wanted) return;
  reader->Fail(Unimplemented("{}: {} {} is not supported (supported: {})", reader->where(), key,
                             Quote(value), kSupported));
}

std::vector<NamePattern> ParsePatterns(const char* key, ConfigReader* reader) {
  std::vector<NamePattern> patterns;
  for (const std::string& text : reader->Strings(key, kMaxNames)) {
    absl::StatusOr<NamePattern> pattern = NamePattern::Parse(text);
    if (!pattern.ok()) {
      reader->Fail(InvalidArgument("{}: {}: {}", reader->where(), key,
                                   std::string(pattern.status().message())));
      return {};
    }
    patterns.push_back(*std::move(pattern));
  }
  return patterns;
}

void ParseWeights(const nlohmann::json& json, const std::string& where, WeightScheme* scheme,
                  ConfigReader* parent) {
  ConfigReader reader(json, where);
  scheme->weight_bits = static_cast<int>(reader.Int("num_bits", 1, 16, 8));
  if (scheme->weight_bits != 4) Expect("num_bits", 8, 8, &reader);
  Expect("type", "int", "int", &reader);
  Expect("dynamic", false, false, &reader);
  scheme->symmetric = reader.Bool("symmetric", true);
  if (scheme->weight_bits == 8) Expect("symmetric", true, true, &reader);

  const bool has_group_size = reader.Has("group_size") && *reader.Find("group_size") != -1;
  const char* by_group_size = has_group_size             ? "group"
                              : reader.Has("group_size") ? "channel"
                                                         : "tensor";
  const std::string strategy = reader.String("strategy", by_group_size);
  scheme->group_size = 0;
  if (strategy == "group" && scheme->weight_bits == 4) {
    scheme->group_size = ParseGroupSize("group_size", &reader);
  } else {
    Expect("strategy", "channel", by_group_size, &reader);
  }
  // "weight" orders columns while quantizing and leaves no trace; "group" needs an index.
  const std::string order = reader.String("actorder", "");
  scheme->act_order = order == "group" || order == "dynamic";
  if (!scheme->act_order && order != "" && order != "weight" && order != "static") {
    reader.Fail(Unimplemented(
        "{}: actorder {} is not supported (supported: null, weight, static, group, dynamic)", where,
        Quote(order)));
  }
  parent->Fail(reader.status());
}

void ParseActivations(const nlohmann::json& json, const std::string& where, ConfigReader* parent) {
  ConfigReader reader(json, where);
  Expect("num_bits", 8, 8, &reader);
  Expect("type", "int", "int", &reader);
  Expect("symmetric", true, true, &reader);
  Expect("dynamic", true, false, &reader);
  Expect("strategy", "token", "tensor", &reader);
  parent->Fail(reader.status());
}

// "format" of the group or, where that says nothing, of the whole.
void ParseFormat(const std::string& common_format, ConfigReader* group, WeightScheme* scheme) {
  const std::string format = group->String("format", common_format);
  const bool is_bytes = format == "int-quantized" || format == "naive-quantized";
  if (!is_bytes && format != "pack-quantized") {
    group->Fail(
        Unimplemented("{}: format {} is not supported (supported: pack-quantized, int-quantized, "
                      "naive-quantized)",
                      group->where(), Quote(format)));
  }
  scheme->layout = is_bytes ? WeightLayout::kBytes : WeightLayout::kPacked;
}

QuantizationConfig::Group ParseGroup(const nlohmann::json& json, const std::string& where,
                                     const std::string& common_format, ConfigReader* parent) {
  QuantizationConfig::Group result;
  if (!json.is_object()) {
    // A list of targets, with the group's name for a preset scheme.
    parent->Fail(InvalidArgument("{} is {}, must be an object", where, Quote(json)));
    return result;
  }
  ConfigReader group(json, where);
  WeightScheme scheme;
  ParseFormat(common_format, &group, &scheme);
  ExpectNone("output_activations", &group);
  result.targets = ParsePatterns("targets", &group);
  if (result.targets.empty()) group.Fail(InvalidArgument("{}: targets is missing", where));
  if (const nlohmann::json* weights = group.Object("weights")) {
    ParseWeights(*weights, where + ": weights", &scheme, &group);
  } else {
    group.Fail(InvalidArgument("{}: weights is missing", where));
  }
  if (const nlohmann::json* activations = group.Object("input_activations")) {
    ParseActivations(*activations, where + ": input_activations", &group);
    scheme.activation_bits = 8;
  }
  if (scheme.weight_bits == 8 &&
      (scheme.layout != WeightLayout::kBytes || scheme.activation_bits != 8)) {
    group.Fail(Unimplemented(
        "{}: 8-bit weights {} are not supported (supported: int-quantized with 8-bit activations)",
        where,
        scheme.layout == WeightLayout::kPacked ? "of format pack-quantized"
                                               : "with 16-bit activations"));
  }
  parent->Fail(group.status());
  result.scheme = scheme;
  return result;
}

}  // namespace

void ParseCompressedTensors(ConfigReader* reader, QuantizationConfig* quantization) {
  Expect("quantization_status", "compressed", "compressed", reader);
  ExpectNone("kv_cache_scheme", reader);
  ExpectNone("transform_config", reader);
  ExpectNone("moe_sparsity_config", reader);
  if (const nlohmann::json* sparsity = reader->Object("sparsity_config")) {
    ConfigReader sparsity_reader(*sparsity, reader->where() + ": sparsity_config");
    const std::string format = sparsity_reader.String("format", "dense");
    if (format != "dense") {
      sparsity_reader.Fail(Unimplemented("{}: format {} is not supported (supported: dense)",
                                         sparsity_reader.where(), Quote(format)));
    }
    reader->Fail(sparsity_reader.status());
  }
  quantization->ignore = ParsePatterns("ignore", reader);
  const std::string format = reader->String("format", "");
  const nlohmann::json* groups = reader->Object("config_groups");
  if (!reader->ok()) return;
  if (groups == nullptr || groups->empty() || groups->size() > kMaxGroups) {
    reader->Fail(InvalidArgument("{}: {} config_groups, must be 1..{}", reader->where(),
                                 groups == nullptr ? 0 : groups->size(), kMaxGroups));
    return;
  }
  for (const auto& [name, group] : groups->items()) {
    const std::string where = fmt::format("{}: config_groups {}", reader->where(), Quote(name));
    quantization->groups.push_back(ParseGroup(group, where, format, reader));
    if (!reader->ok()) return;
  }
}

}  // namespace nibble::engine
