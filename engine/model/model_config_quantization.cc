// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// quantization_config of GPTQ, AWQ and AutoRound; that of compressed-tensors, which is a language
// of its own, is in model_config_compressed_tensors.cc. Modules that these files leave plain
// (modules_to_not_convert and its like) are told by their tensors.

#include <algorithm>
#include <array>
#include <cctype>

#include "engine/model/model_config_parts.h"

namespace nibble::engine {
namespace {

constexpr int64_t kMaxRules = 100'000;
constexpr int64_t kLargestBits = 64;  // a module of that many is plain: 16 in practice

void RequireBits(const char* key, ConfigReader* reader) {
  const int64_t bits = reader->Int(key, 1, kLargestBits);
  if (!reader->ok() || bits == 4) return;
  reader->Fail(
      Unimplemented("{}: {} {} is not supported (supported: 4)", reader->where(), key, bits));
}

// GPTQ and AWQ say -1 for one scale per output channel.
int64_t ParseGroupSizeOrChannel(const char* key, ConfigReader* reader) {
  const nlohmann::json* value = reader->Find(key);
  if (value != nullptr && *value == -1) return 0;
  return ParseGroupSize(key, reader);
}

void AddRule(std::string_view pattern, std::optional<WeightScheme> scheme, ConfigReader* reader,
             QuantizationConfig* quantization) {
  absl::StatusOr<NamePattern> target = NamePattern::Parse(pattern);
  if (!target.ok()) {
    reader->Fail(
        InvalidArgument("{}: {}", reader->where(), std::string(target.status().message())));
    return;
  }
  quantization->groups.push_back({.targets = {*std::move(target)}, .scheme = scheme});
}

using ParseFields = void (*)(ConfigReader*, WeightScheme*);

// What a rule for some modules changes of `scheme`; nullopt: it leaves them plain. `parse_fields`
// reads and checks what the method allows besides bits and group_size.
std::optional<WeightScheme> ParseOverrides(const nlohmann::json& json, const std::string& where,
                                           ParseFields parse_fields, WeightScheme scheme,
                                           ConfigReader* parent) {
  if (!json.is_object()) {
    parent->Fail(InvalidArgument("{} is {}, must be an object", where, Quote(json)));
    return std::nullopt;
  }
  ConfigReader reader(json, where);
  const bool plain = reader.Int("bits", 1, kLargestBits, 4) >= 16;
  if (!plain && reader.Has("bits")) RequireBits("bits", &reader);
  if (reader.Has("group_size")) scheme.group_size = ParseGroupSizeOrChannel("group_size", &reader);
  if (!plain) parse_fields(&reader, &scheme);
  parent->Fail(reader.status());
  return plain ? std::nullopt : std::optional(scheme);
}

const nlohmann::json* Rules(const char* key, ConfigReader* reader) {
  const nlohmann::json* rules = reader->Object(key);
  if (rules != nullptr && static_cast<int64_t>(rules->size()) > kMaxRules) {
    reader->Fail(InvalidArgument("{}: {} has {} entries, the limit is {}", reader->where(), key,
                                 rules->size(), kMaxRules));
    return nullptr;
  }
  return rules;
}

// Of the whole, and of a rule; what is absent stays as it is. `sym` says nothing that is needed:
// zero points are stored always.
void ParseGptqFields(ConfigReader* reader, WeightScheme* scheme) {
  scheme->act_order = reader->Bool("desc_act", scheme->act_order);
  const char* format_key = reader->Has("checkpoint_format") ? "checkpoint_format" : "format";
  const std::string format =
      reader->String(format_key, scheme->zeros_less_one ? "gptq" : "gptq_v2");
  if (format != "gptq" && format != "gptq_v2") {
    reader->Fail(Unimplemented("{}: {} {} is not supported (supported: gptq, gptq_v2)",
                               reader->where(), format_key, Quote(format)));
  }
  scheme->zeros_less_one = format == "gptq";
  const std::string word = reader->String("pack_dtype", "int32");
  if (word != "int32") {
    reader->Fail(Unimplemented("{}: pack_dtype {} is not supported (supported: int32)",
                               reader->where(), Quote(word)));
  }
  ExpectNone("is_marlin_format", reader);
  ExpectNone("adapter", reader);
}

void ParseGptq(ConfigReader* reader, QuantizationConfig* quantization) {
  WeightScheme scheme = {.layout = WeightLayout::kGptq};
  RequireBits("bits", reader);
  scheme.group_size = ParseGroupSizeOrChannel("group_size", reader);
  ParseGptqFields(reader, &scheme);
  AddRule("Linear", scheme, reader, quantization);
  // GPTQModel: "-:EXPRESSION" leaves modules plain, "+:EXPRESSION" or the expression changes them.
  const nlohmann::json* dynamic = Rules("dynamic", reader);
  if (dynamic == nullptr) return;
  for (const auto& [key, overrides] : dynamic->items()) {
    const bool plain = key.starts_with("-:");
    const std::string expression = plain || key.starts_with("+:") ? key.substr(2) : key;
    const std::string where = fmt::format("{}: dynamic {}", reader->where(), Quote(key));
    AddRule(
        "re:" + expression,
        plain ? std::nullopt : ParseOverrides(overrides, where, ParseGptqFields, scheme, reader),
        reader, quantization);
    if (!reader->ok()) return;
  }
}

void ParseAwq(ConfigReader* reader, QuantizationConfig* quantization) {
  WeightScheme scheme = {.layout = WeightLayout::kAwq};
  RequireBits(reader->Has("w_bit") ? "w_bit" : "bits", reader);
  scheme.group_size =
      ParseGroupSizeOrChannel(reader->Has("q_group_size") ? "q_group_size" : "group_size", reader);
  std::string version = reader->String("version", "gemm");
  std::transform(version.begin(), version.end(), version.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (version != "gemm") {
    reader->Fail(Unimplemented("{}: version {} is not supported (supported: gemm)", reader->where(),
                               Quote(version)));
  }
  const std::string backend = reader->String("backend", "autoawq");
  if (backend != "autoawq") {
    reader->Fail(Unimplemented("{}: backend {} is not supported (supported: autoawq)",
                               reader->where(), Quote(backend)));
  }
  AddRule("Linear", scheme, reader, quantization);
}

struct PackingFormat {
  std::string_view name;
  WeightLayout layout;
  bool zeros_less_one;
};
constexpr PackingFormat kPackingFormats[] = {
    {"auto_round:auto_gptq", WeightLayout::kGptq, true},
    {"auto_round:gptq", WeightLayout::kGptq, true},
    {"auto_gptq", WeightLayout::kGptq, true},
    {"auto_round", WeightLayout::kGptq, false},
    {"auto_round:gptqmodel", WeightLayout::kGptq, false},
    {"auto_round:auto_awq", WeightLayout::kAwq, false},
    {"auto_round:awq", WeightLayout::kAwq, false},
    {"auto_awq", WeightLayout::kAwq, false},
};

// Of the whole, and of a rule.
void CheckAutoRoundFields(ConfigReader* reader, WeightScheme*) {
  const std::string type = reader->String("data_type", "int");
  if (!type.starts_with("int")) {
    reader->Fail(Unimplemented("{}: data_type {} is not supported (supported: int)",
                               reader->where(), Quote(type)));
  }
  const int64_t activation_bits = reader->Int("act_bits", 1, kLargestBits, 16);
  if (activation_bits < 16) {
    reader->Fail(Unimplemented("{}: act_bits {} is not supported (supported: 16)", reader->where(),
                               activation_bits));
  }
  ExpectNone("rotation_config", reader);
  ExpectNone("hadamard_config", reader);
}

void ParseAutoRound(ConfigReader* reader, QuantizationConfig* quantization) {
  WeightScheme scheme;
  RequireBits("bits", reader);
  scheme.group_size = ParseGroupSizeOrChannel("group_size", reader);
  CheckAutoRoundFields(reader, &scheme);
  const char* format_key = reader->Has("packing_format") ? "packing_format" : "backend";
  const std::string name = reader->String(format_key, kPackingFormats[0].name);
  const auto* format =
      std::find_if(std::begin(kPackingFormats), std::end(kPackingFormats),
                   [&name](const PackingFormat& known) { return known.name == name; });
  if (format == std::end(kPackingFormats)) {
    reader->Fail(Unimplemented(
        "{}: {} {} is not supported (supported: auto_round:auto_gptq, auto_round:auto_awq, "
        "auto_gptq, auto_awq, auto_round)",
        reader->where(), format_key, Quote(name)));
    return;
  }
  scheme.layout = format->layout;
  scheme.zeros_less_one = format->zeros_less_one;
  AddRule("Linear", scheme, reader, quantization);
  const nlohmann::json* rules = Rules("extra_config", reader);
  if (rules == nullptr) return;
  for (const auto& [key, overrides] : rules->items()) {
    const bool is_regex = key.find_first_of("*+?[](){}|\\^$") != std::string::npos;
    const std::string where = fmt::format("{}: extra_config {}", reader->where(), Quote(key));
    AddRule(is_regex ? "re:" + key : key,
            ParseOverrides(overrides, where, CheckAutoRoundFields, scheme, reader), reader,
            quantization);
    if (!reader->ok()) return;
  }
}

}  // namespace

int64_t ParseGroupSize(const char* key, ConfigReader* reader) {
  constexpr int64_t kMaxGroupSize = 1 << 16;
  const int64_t group_size = reader->Int(key, 8, kMaxGroupSize);
  if (group_size % 8 != 0) {
    reader->Fail(
        InvalidArgument("{}: {} is {}, must be a multiple of 8", reader->where(), key, group_size));
  }
  return group_size;
}

void ExpectNone(const char* key, ConfigReader* reader) {
  const nlohmann::json* value = reader->Find(key);
  if (value == nullptr || (value->is_structured() && value->empty()) || *value == false) return;
  reader->Fail(Unimplemented("{}: {} {} is not supported", reader->where(), key, Quote(*value)));
}

std::optional<QuantizationConfig> ParseQuantization(ConfigReader* parent) {
  const nlohmann::json* json = parent->Object("quantization_config");
  if (json == nullptr) {
    ExpectNone("compression_config", parent);  // what quantization_config was called before
    return std::nullopt;
  }
  struct Method {
    std::string_view name;
    void (*parse)(ConfigReader*, QuantizationConfig*);
    bool tensors_decide;
  };
  constexpr Method kMethods[] = {{"compressed-tensors", ParseCompressedTensors, false},
                                 {"gptq", ParseGptq, true},
                                 {"awq", ParseAwq, true},
                                 {"auto-round", ParseAutoRound, true}};
  ConfigReader reader(*json, parent->where() + ": quantization_config");
  QuantizationConfig quantization;
  quantization.method = reader.String("quant_method", "");
  const auto* method = std::find_if(
      std::begin(kMethods), std::end(kMethods),
      [&quantization](const Method& known) { return known.name == quantization.method; });
  if (method == std::end(kMethods)) {
    reader.Fail(Unimplemented(
        "{}: quant_method {} is not supported (supported: compressed-tensors, gptq, awq, "
        "auto-round)",
        reader.where(), Quote(json->contains("quant_method") ? (*json)["quant_method"] : nullptr)));
  } else {
    quantization.tensors_decide = method->tensors_decide;
    method->parse(&reader, &quantization);
  }
  if (quantization.regex_bytes() > QuantizationConfig::kMaxRegexBytes) {
    reader.Fail(InvalidArgument("{}: regular expressions of {} bytes, the limit is {}",
                                reader.where(), quantization.regex_bytes(),
                                QuantizationConfig::kMaxRegexBytes));
  }
  parent->Fail(reader.status());
  return quantization;
}

}  // namespace nibble::engine
