// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/chat/chat_template.h"

#include <utility>

#include "base/utf8.h"
#include "server/chat/jinja/interpreter.h"
#include "server/chat/jinja/lexer.h"
#include "server/chat/jinja/parser.h"

namespace nibble::server {

struct ChatTemplate::Program {
  jinja::Template parsed;
};

ChatTemplate::ChatTemplate(std::unique_ptr<Program> program, const TemplateLimits& limits)
    : program_(std::move(program)), limits_(limits) {}

ChatTemplate::~ChatTemplate() = default;

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Parse(std::string source,
                                                                  const TemplateLimits& limits) {
  if (static_cast<int64_t>(source.size()) > limits.max_template_bytes) {
    return InvalidArgument("chat template of {} bytes is longer than the limit of {} bytes",
                           source.size(), limits.max_template_bytes);
  }
  if (!IsValidUtf8(source)) return InvalidArgument("chat template is not valid UTF-8");
  absl::StatusOr<std::vector<jinja::Token>> tokens = jinja::Tokenize(source);
  if (!tokens.ok()) return Annotate(tokens.status(), "chat template");
  absl::StatusOr<jinja::Template> parsed =
      jinja::Parser(*std::move(tokens), limits.max_depth).Parse();
  if (!parsed.ok()) return Annotate(parsed.status(), "chat template");
  auto program = std::make_unique<Program>(Program{*std::move(parsed)});
  return std::unique_ptr<ChatTemplate>(new ChatTemplate(std::move(program), limits));
}

absl::StatusOr<std::string> ChatTemplate::Render(const nlohmann::ordered_json& variables,
                                                 int64_t now_unix_seconds) const {
  return jinja::Interpreter(limits_, now_unix_seconds).Render(program_->parsed, variables);
}

}  // namespace nibble::server
