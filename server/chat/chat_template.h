// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Renders a chat into the text a model was trained on: the Jinja templates of Hugging Face
// checkpoints, run by our own interpreter. Templates come with model files and are not trusted:
// they reach nothing but their variables, and steps, output size and recursion are limited.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "nlohmann/json.hpp"

#include "base/status.h"
#include "server/chat/template_limits.h"

namespace nibble::server {

// A parsed template. Immutable; Render is thread-safe.
class ChatTemplate {
 public:
  // INVALID_ARGUMENT with line and the offending text for syntax errors and constructs that are not
  // supported.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Parse(std::string source,
                                                             const TemplateLimits& limits = {});

  ~ChatTemplate();
  ChatTemplate(const ChatTemplate&) = delete;
  ChatTemplate& operator=(const ChatTemplate&) = delete;

  // Renders with `variables` (an object: messages, add_generation_prompt, bos_token, eos_token,
  // tools, ...; key order is kept where it shows, e.g. in tojson). `now_unix_seconds` is what
  // strftime_now tells. Jinja settings are those of transformers: trim_blocks, lstrip_blocks, loop
  // controls, tojson without HTML escapes, undefined renders as "". INVALID_ARGUMENT carries
  // raise_exception's message, an exceeded limit, or the line of a failing expression.
  absl::StatusOr<std::string> Render(const nlohmann::ordered_json& variables,
                                     int64_t now_unix_seconds) const;

 private:
  struct Program;
  ChatTemplate(std::unique_ptr<Program> program, const TemplateLimits& limits);
  std::unique_ptr<Program> program_;
  TemplateLimits limits_;
};

}  // namespace nibble::server
