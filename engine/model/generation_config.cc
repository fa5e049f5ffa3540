// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <algorithm>

#include "base/json.h"
#include "base/mapped_file.h"
#include "engine/model/config_reader.h"
#include "engine/model/model_config.h"

namespace nibble::engine {
namespace {

constexpr size_t kMaxFileBytes = size_t{4} << 20;
constexpr size_t kMaxStopIds = 1024;

std::optional<float> OptionalFloat(ConfigReader* reader, const char* key, double low, double high) {
  if (!reader->Has(key)) return std::nullopt;
  return static_cast<float>(reader->Double(key, low, high));
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
  config.temperature = OptionalFloat(&reader, "temperature", 0.0, 100.0);
  config.top_p = OptionalFloat(&reader, "top_p", 0.0, 1.0);
  config.min_p = OptionalFloat(&reader, "min_p", 0.0, 1.0);
  // 1 is neutral; 0 would divide by zero.
  config.repetition_penalty = OptionalFloat(&reader, "repetition_penalty", 1e-3, 100.0);
  if (reader.Has("top_k")) {
    // -1 is another spelling of 0, off.
    config.top_k = static_cast<int32_t>(std::max<int64_t>(reader.Int("top_k", -1, INT32_MAX), 0));
  }
  if (reader.Has("max_new_tokens")) {
    config.max_new_tokens = reader.Int("max_new_tokens", 1, INT32_MAX);
  }
  if (!reader.ok()) return reader.status();
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
