// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Metrics of what stands in front of a server's routes: certificates and keys, which are files that
// somebody has to renew.
//
//   nibble:tls_certificate_expiry_timestamp_seconds
//   nibble:api_key_file_stale  nibble:api_key_file_errors_total
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace nibble::server {

struct GuardState {
  std::optional<int64_t> certificate_expiry_unix_seconds;  // of the one in use; none: no TLS
  bool key_file_is_stale = false;  // ApiKeys'; of none there is: false and 0
  int64_t num_key_file_errors = 0;
};

// The text exposition format.
std::string GuardMetrics(const GuardState& state, const std::string& model_name);

}  // namespace nibble::server
