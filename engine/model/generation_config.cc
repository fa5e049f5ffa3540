// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <limits>

#include "base/json.h"
#include "base/mapped_file.h"
#include "engine/model/config_reader.h"
#include "engine/model/model_config.h"
#include "engine/request/sampling_params.h"

namespace nibble::engine {
namespace {

constexpr size_t kMaxFileBytes = size_t{4} << 20;
constexpr size_t kMaxStopIds = 1024;

std::optional<float> OptionalFloat(ConfigReader* reader, const char* key) {
  constexpr double kMax = std::numeric_limits<float>::max();
  if (!reader->Has(key)) return std::nullopt;
  return static_cast<float>(reader->Double(key, -kMax, kMax));
}

// These become the defaults of every request, so the limits are a request's: a value that passed
// here and failed there would be refused in the name of clients who never sent it.
absl::Status CheckDefaults(const GenerationConfig& config, std::string_view path) {
  SamplingParams params{.max_tokens = kFillContext};
  params.temperature = config.temperature.value_or(params.temperature);
  params.top_p = config.top_p.value_or(params.top_p);
  params.top_k = config.top_k.value_or(params.top_k);
  params.min_p = config.min_p.value_or(params.min_p);
  params.repetition_penalty = config.repetition_penalty.value_or(params.repetition_penalty);
  return Annotate(params.Validate({}), absl::string_view(path.data(), path.size()));
}

}  // namespace

absl::StatusOr<GenerationConfig> ParseGenerationConfig(std::string_view json_text,
                                                       std::string_view path) {
  absl::StatusOr<nlohmann::json> json = ParseJson(json_text, {.max_bytes = kMaxFileBytes});
  if (!json.ok()) return Annotate(json.status(), absl::string_view(path.data(), path.size()));
  if (!json->is_object()) {
    return InvalidArgument("{}: holds {}, must be an object", path, json->type_name());
  }
  ConfigReader reader(*json, path);
  GenerationConfig config;
  config.eos_token_ids = reader.Ids("eos_token_id", INT32_MAX, kMaxStopIds);
  config.temperature = OptionalFloat(&reader, "temperature");
  config.top_p = OptionalFloat(&reader, "top_p");
  config.min_p = OptionalFloat(&reader, "min_p");
  config.repetition_penalty = OptionalFloat(&reader, "repetition_penalty");
  if (reader.Has("top_k")) {
    // -1 is another spelling of 0, off.
    config.top_k = static_cast<int32_t>(std::max<int64_t>(reader.Int("top_k", -1, INT32_MAX), 0));
  }
  if (reader.Has("max_new_tokens")) {
    config.max_new_tokens = reader.Int("max_new_tokens", 1, INT32_MAX);
  }
  NIBBLE_RETURN_IF_ERROR(reader.status());
  NIBBLE_RETURN_IF_ERROR(CheckDefaults(config, path));
  return config;
}

absl::StatusOr<GenerationConfig> LoadGenerationConfig(const std::string& dir) {
  const std::string path = dir + "/generation_config.json";
  absl::StatusOr<std::string> text = ReadFile(path, kMaxFileBytes);
  if (absl::IsNotFound(text.status())) return GenerationConfig();
  if (!text.ok()) return text.status();
  return ParseGenerationConfig(*text, path);
}

}  // namespace nibble::engine
