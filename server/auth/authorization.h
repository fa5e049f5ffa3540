// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The Authorization header, as far as nibble reads it.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"

namespace nibble::server {

inline constexpr size_t kMaxApiKeyBytes = 4096;

// INVALID_ARGUMENT unless `key` is 1..4096 visible ASCII characters. The message never has a part
// of the key.
absl::Status CheckApiKey(std::string_view key);

struct Credential {
  bool by_basic = false;
  std::string key;  // of Bearer; of Basic the password, whatever the user is
};

// nullopt for other schemes and whatever is malformed: "Bearer" or "Basic" in any case, spaces, and
// one word; for Basic that is user:password in base64.
std::optional<Credential> ParseAuthorization(std::string_view header);

}  // namespace nibble::server
