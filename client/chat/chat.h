// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// `nibble chat`: a conversation with a running server, in the terminal.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "client/http/client_security.h"

namespace nibble::client {

struct ChatOptions {
  std::string url = "http://127.0.0.1:8000";
  std::string model;   // empty: the first one the server lists
  std::string system;  // system message; empty: none
  std::optional<float> temperature;
  std::optional<float> top_p;
  std::optional<int64_t> seed;
  std::optional<int64_t> max_tokens;
  bool stats = false;
  ClientSecurity security;
};

// Reads lines from standard input, streams answers to standard output. /reset forgets the
// conversation, /exit or end of input ends it, Ctrl-C cancels the answer in progress (or ends the
// program at the prompt). Returns the exit status.
int RunChat(const ChatOptions& options);

}  // namespace nibble::client
