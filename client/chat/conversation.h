// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The state of a chat with a server: what was said, and one turn over the OpenAI API.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "nlohmann/json.hpp"

#include "base/status.h"
#include "client/chat/chat.h"
#include "client/http/http_client.h"

namespace nibble::client {

struct TurnStats {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  double first_token_seconds = 0.0;
  double total_seconds = 0.0;
  std::string finish_reason;
};

class Conversation {
 public:
  Conversation(HttpClient client, const ChatOptions& options);

  // Name of the model that is talked to: the option's, or the first one the server lists.
  absl::StatusOr<std::string> FindModel();

  // Sends `text` with all earlier turns; `on_text` gets the answer as it is generated. The turn is
  // remembered when the answer is complete; cut off by `cancel` (CANCELLED), with what came; after
  // any other error, not at all.
  absl::StatusOr<TurnStats> Say(const std::string& text,
                                const std::function<void(std::string_view)>& on_text,
                                const std::atomic<bool>& cancel);

  // Forgets all turns; the system message stays.
  void Reset();
  const nlohmann::json& messages() const { return messages_; }

 private:
  nlohmann::json RequestBody() const;

  HttpClient client_;
  ChatOptions options_;
  nlohmann::json messages_ = nlohmann::json::array();
};

}  // namespace nibble::client
