// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/chat_setup.h"

#include <ctime>
#include <string>
#include <utility>

#include "base/log.h"
#include "base/mapped_file.h"
#include "server/chat/tokenizer_config.h"
#include "server/cli/start_error.h"

namespace nibble::cli {
namespace {

constexpr size_t kMaxTemplateBytes = size_t{1} << 20;

StartError Unusable(const server::ServeConfig& config, std::string why) {
  StartError error{.needed = "a Jinja chat template that this server has the language for",
                   .there_is = std::move(why)};
  if (config.chat_template.empty()) {
    error.what = fmt::format("{}: the model's chat template cannot be used", config.model.model);
    error.remedies = {"--chat-template FILE with one that can"};
  } else {
    error.what = fmt::format("--chat-template {} cannot be used", config.chat_template);
    error.remedies = {"another file", "leaving the option out: then it is the model's own"};
  }
  return error;
}

// What the simplest request would get: OK, or why it would get nothing.
absl::Status Try(const ChatSetup& chat) {
  constexpr const char* kText = "Hello there";
  nlohmann::ordered_json variables = chat.template_variables.is_object()
                                         ? chat.template_variables
                                         : nlohmann::ordered_json::object();
  variables["messages"] = {{{"role", "user"}, {"content", kText}}};
  variables["add_generation_prompt"] = true;
  variables["tools"] = nullptr;
  variables["documents"] = nullptr;
  const absl::StatusOr<std::string> text =
      chat.chat_template->Render(variables, std::time(nullptr));
  NIBBLE_RETURN_IF_ERROR(Annotate(text.status(), "of one user's message it makes an error"));
  if (text->find(kText) != std::string::npos) return absl::OkStatus();
  return InvalidArgument("a user's message is not in what it makes of it");
}

}  // namespace

absl::StatusOr<ChatSetup> SetUpChat(const server::ServeConfig& config) {
  NIBBLE_ASSIGN_OR_RETURN(server::TokenizerConfig tokenizer_config,
                          server::LoadTokenizerConfig(config.model.model));
  ChatSetup chat{.chat_template = nullptr,
                 .template_variables = std::move(tokenizer_config.template_variables)};
  std::string source = std::move(tokenizer_config.chat_template);
  if (!config.chat_template.empty()) {
    absl::StatusOr<std::string> text = ReadFile(config.chat_template, kMaxTemplateBytes);
    if (!text.ok()) {
      return Unusable(config, std::string(text.status().message())).ToStatus(text.status().code());
    }
    source = *std::move(text);
    if (source.empty()) {
      return Unusable(config, "the file is empty").ToStatus(absl::StatusCode::kInvalidArgument);
    }
  }
  if (source.empty()) {
    log::Warning(
        "{} has no chat template: chat requests are refused; --chat-template FILE gives one",
        config.model.model);
    return chat;
  }
  auto parsed = server::ChatTemplate::Parse(std::move(source));
  if (!parsed.ok()) {
    return Unusable(config, std::string(parsed.status().message()))
        .ToStatus(parsed.status().code());
  }
  chat.chat_template = *std::move(parsed);
  const absl::Status tried = Try(chat);
  if (tried.ok()) return chat;
  if (!config.chat_template.empty()) {
    return Unusable(config, std::string(tried.message())).ToStatus(tried.code());
  }
  log::Warning("{}: the model's chat template: {}", config.model.model,
               std::string(tried.message()));
  return chat;
}

}  // namespace nibble::cli
