// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#pragma once

#include <string>
#include <string_view>

#include "base/status.h"

namespace nibble::client {

// A server's address such as http://127.0.0.1:8000, perhaps with a path in front of the API's. The
// base URL of OpenAI's clients, which ends with /v1, is the same server.
struct Url {
  std::string host;
  std::string port;
  std::string prefix;  // "" or "/path" without a slash at the end, and without /v1
  bool tls = false;    // https

  // INVALID_ARGUMENT naming the text for anything but http[s]://HOST[:PORT][/PATH].
  static absl::StatusOr<Url> Parse(std::string_view text);

  // "host:port" as a Host header and messages have it; IPv6 addresses in brackets.
  std::string Authority() const;
};

// 1 to 65535.
bool IsPort(std::string_view text);

}  // namespace nibble::client
