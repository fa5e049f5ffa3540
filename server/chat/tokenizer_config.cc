// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/chat/tokenizer_config.h"

#include <array>

#include "base/json.h"
#include "base/mapped_file.h"

namespace nibble::server {
namespace {

constexpr size_t kMaxFileBytes = size_t{64} << 20;

constexpr std::array<const char*, 7> kSpecialTokens = {
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"};

// A token is a string, or an object that describes it.
absl::StatusOr<std::string> TokenText(const nlohmann::json& value, std::string_view name,
                                      std::string_view path) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_object() && value.contains("content") && value["content"].is_string()) {
    return value["content"].get<std::string>();
  }
  return InvalidArgument("{}: {} is {}, want a string or an object with content", path, name,
                         value.type_name());
}

// A template is a string, or a list of named ones of which "default" is for chats without tools.
absl::StatusOr<std::string> TemplateText(const nlohmann::json& value, std::string_view path) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_array()) {
    for (const nlohmann::json& entry : value) {
      if (entry.is_object() && entry.value("name", nlohmann::json()) == "default" &&
          entry.contains("template") && entry["template"].is_string()) {
        return entry["template"].get<std::string>();
      }
    }
    return InvalidArgument("{}: chat_template is a list without an entry named \"default\"", path);
  }
  return InvalidArgument("{}: chat_template is {}, want a string or a list", path,
                         value.type_name());
}

// The file's text, or NOT_FOUND.
absl::StatusOr<std::string> ReadIfPresent(const std::string& path) {
  return ReadFile(path, kMaxFileBytes);
}

}  // namespace

absl::StatusOr<TokenizerConfig> ParseTokenizerConfig(std::string_view json_text,
                                                     std::string_view path) {
  TokenizerConfig config;
  config.template_variables = nlohmann::ordered_json::object();
  absl::StatusOr<nlohmann::json> json = ParseJson(json_text);
  if (!json.ok()) return Annotate(json.status(), absl::string_view(path.data(), path.size()));
  if (!json->is_object()) return InvalidArgument("{}: {}, want an object", path, json->type_name());
  for (const char* name : kSpecialTokens) {
    const auto found = json->find(name);
    if (found == json->end() || found->is_null()) continue;
    NIBBLE_ASSIGN_OR_RETURN(config.template_variables[name], TokenText(*found, name, path));
  }
  const auto found = json->find("chat_template");
  if (found != json->end() && !found->is_null()) {
    NIBBLE_ASSIGN_OR_RETURN(config.chat_template, TemplateText(*found, path));
  }
  return config;
}

absl::StatusOr<TokenizerConfig> LoadTokenizerConfig(const std::string& dir) {
  TokenizerConfig config;
  config.template_variables = nlohmann::ordered_json::object();
  const std::string config_path = dir + "/tokenizer_config.json";
  absl::StatusOr<std::string> text = ReadIfPresent(config_path);
  if (text.ok()) {
    NIBBLE_ASSIGN_OR_RETURN(config, ParseTokenizerConfig(*text, config_path));
  } else if (!absl::IsNotFound(text.status())) {
    return text.status();
  }
  // Newer checkpoints keep the template in a file of its own, which then counts.
  absl::StatusOr<std::string> jinja = ReadIfPresent(dir + "/chat_template.jinja");
  if (jinja.ok()) {
    config.chat_template = *std::move(jinja);
    return config;
  }
  if (!absl::IsNotFound(jinja.status())) return jinja.status();
  const std::string json_path = dir + "/chat_template.json";
  absl::StatusOr<std::string> json_text = ReadIfPresent(json_path);
  if (absl::IsNotFound(json_text.status())) return config;
  NIBBLE_RETURN_IF_ERROR(json_text.status());
  absl::StatusOr<nlohmann::json> json = ParseJson(*json_text);
  if (!json.ok()) return Annotate(json.status(), json_path);
  if (!json->is_object() || !json->contains("chat_template")) {
    return InvalidArgument("{}: no chat_template in it", json_path);
  }
  NIBBLE_ASSIGN_OR_RETURN(config.chat_template, TemplateText((*json)["chat_template"], json_path));
  return config;
}

}  // namespace nibble::server
