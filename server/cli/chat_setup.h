// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The chat template that a server uses, found and tried before anything else is done.
#pragma once

#include <memory>

#include "nlohmann/json.hpp"

#include "base/status.h"
#include "server/chat/chat_template.h"
#include "server/config.h"

namespace nibble::cli {

struct ChatSetup {
  std::unique_ptr<server::ChatTemplate> chat_template;  // null: the model has none, which is logged
  nlohmann::ordered_json template_variables;
};

// Errors are StartErrors. A template of --chat-template that cannot render one user's message, or
// drops it, is one; the model's own is warned of, for completions need none.
absl::StatusOr<ChatSetup> SetUpChat(const server::ServeConfig& config);

}  // namespace nibble::cli
