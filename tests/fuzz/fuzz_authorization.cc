// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Any bytes as an Authorization header: nothing, or a key that could have been given.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "server/auth/authorization.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto credential = nibble::server::ParseAuthorization(
      std::string_view(reinterpret_cast<const char*>(data), size));
  if (credential.has_value() && !nibble::server::CheckApiKey(credential->key).ok()) std::abort();
  return 0;
}
