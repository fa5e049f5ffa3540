// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/model_config_parts.h"

namespace nibble::engine {
namespace {

constexpr int64_t kMaxGroupSize = 1 << 16;
constexpr size_t kMaxIgnored = 100'000;
constexpr std::string_view kSupported =
    "compressed-tensors, pack-quantized, 4-bit symmetric int weights in groups, activations not "
    "quantized or 8-bit int, dynamic, per token";

// Refuses `key` unless its text (or JSON, for numbers and booleans) is `wanted`.
void Expect(ConfigReader* reader, const char* key, const nlohmann::json& wanted,
            const nlohmann::json& default_value = nullptr) {
  const nlohmann::json* found = reader->Find(key);
  const nlohmann::json& value = found == nullptr ? default_value : *found;
  if (value == wanted) return;
  reader->Fail(Unimplemented("{}: {} {} is not supported (supported: {})", reader->where(), key,
                             Quote(value), kSupported));
}

// Absent, null, false or empty: features that nibble does not read.
void ExpectNone(ConfigReader* reader, const char* key) {
  const nlohmann::json* value = reader->Find(key);
  if (value == nullptr || (value->is_structured() && value->empty()) || *value == false) return;
  reader->Fail(Unimplemented("{}: {} {} is not supported", reader->where(), key, Quote(*value)));
}

int64_t ParseWeights(const nlohmann::json& json, const std::string& where, ConfigReader* parent) {
  ConfigReader reader(json, where);
  Expect(&reader, "num_bits", 4, 8);
  Expect(&reader, "type", "int", "int");
  Expect(&reader, "symmetric", true, true);
  Expect(&reader, "strategy", "group", reader.Has("group_size") ? "group" : "tensor");
  Expect(&reader, "dynamic", false, false);
  // "weight" orders columns while quantizing and leaves no trace; "group" needs an index.
  const std::string order = reader.String("actorder", "");
  if (order != "" && order != "weight" && order != "static") {
    reader.Fail(Unimplemented("{}: actorder {} is not supported (supported: null, weight, static)",
                              where, Quote(order)));
  }
  const int64_t group_size = reader.Int("group_size", 8, kMaxGroupSize);
  if (group_size % 8 != 0) {
    reader.Fail(
        InvalidArgument("{}: group_size is {}, must be a multiple of 8", where, group_size));
  }
  parent->Fail(reader.status());
  return group_size;
}

void ParseActivations(const nlohmann::json& json, const std::string& where, ConfigReader* parent) {
  ConfigReader reader(json, where);
  Expect(&reader, "num_bits", 8, 8);
  Expect(&reader, "type", "int", "int");
  Expect(&reader, "symmetric", true, true);
  Expect(&reader, "strategy", "token", "tensor");
  Expect(&reader, "dynamic", true, false);
  parent->Fail(reader.status());
}

}  // namespace

std::optional<QuantizationConfig> ParseQuantization(ConfigReader* parent) {
  const nlohmann::json* json = parent->Object("quantization_config");
  if (json == nullptr) {
    ExpectNone(parent, "compression_config");  // what quantization_config was called before
    return std::nullopt;
  }
  QuantizationConfig quantization;
  ConfigReader reader(*json, parent->where() + ": quantization_config");
  Expect(&reader, "quant_method", "compressed-tensors");
  Expect(&reader, "format", "pack-quantized");
  Expect(&reader, "quantization_status", "compressed", "compressed");
  ExpectNone(&reader, "kv_cache_scheme");
  ExpectNone(&reader, "transform_config");
  if (const nlohmann::json* sparsity = reader.Object("sparsity_config")) {
    ConfigReader sparsity_reader(*sparsity, reader.where() + ": sparsity_config");
    Expect(&sparsity_reader, "format", "dense", "dense");
    reader.Fail(sparsity_reader.status());
  }
  quantization.ignore = reader.Strings("ignore", kMaxIgnored);

  const nlohmann::json* groups = reader.Object("config_groups");
  if (reader.ok() && (groups == nullptr || groups->size() != 1)) {
    reader.Fail(Unimplemented("{}: {} config_groups are not supported (supported: 1)",
                              reader.where(), groups == nullptr ? 0 : groups->size()));
  }
  if (reader.ok() && !groups->front().is_object()) {
    reader.Fail(InvalidArgument("{}: config_groups holds {}, must hold an object", reader.where(),
                                Quote(groups->front())));
  }
  if (reader.ok()) {
    // Which modules are quantized is read from the tensors (weight_packed), not from `targets`.
    ConfigReader group(groups->front(), reader.where() + ": config_groups");
    Expect(&group, "format", "pack-quantized", "pack-quantized");
    ExpectNone(&group, "output_activations");
    const nlohmann::json* weights = group.Object("weights");
    if (weights == nullptr) {
      group.Fail(InvalidArgument("{}: weights is missing", group.where()));
    } else {
      quantization.group_size = ParseWeights(*weights, group.where() + ": weights", &group);
    }
    if (const nlohmann::json* activations = group.Object("input_activations")) {
      ParseActivations(*activations, group.where() + ": input_activations", &group);
      quantization.activation_bits = 8;
    }
    reader.Fail(group.status());
  }
  parent->Fail(reader.status());
  return quantization;
}

}  // namespace nibble::engine
