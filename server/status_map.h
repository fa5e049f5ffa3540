// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The one table that turns a status into what clients of either API see.
#pragma once

#include <string_view>

#include "absl/status/status.h"

namespace nibble::server {

struct StatusMapping {
  int http_status;
  int grpc_code;                 // numeric value of grpc::StatusCode
  std::string_view openai_type;  // error.type of the OpenAI error object
  std::string_view openai_code;  // error.code; empty: null
  int retry_after_seconds;       // 0: no hint, repeating the same request will not help
};

// Every code has an entry; a code that Abseil adds later maps as UNKNOWN does.
const StatusMapping& MapStatus(absl::StatusCode code);

}  // namespace nibble::server
