// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Who may use the server, how much of it, and what is written down of that: a part of
// server/config.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nibble::server {

struct GuardOptions {
  std::vector<std::string> api_keys;  // and that of NIBBLE_API_KEY, which server/cli takes
  std::string api_key_file;
  std::string ssl_certfile;  // PEM; both or none: TLS for HTTP and gRPC
  std::string ssl_keyfile;
  std::string ssl_ca_certs;
  std::string ssl_cert_reqs = "none";   // of clients: none, optional, required
  int64_t max_header_bytes = 64 << 10;  // of an HTTP request; of a gRPC call's metadata
  int64_t max_connections = 16384;      // of HTTP
  int http_read_timeout_seconds = 60;   // for a request to arrive; for idle connections
  double request_timeout_seconds = 0;   // for an answer to be complete; 0: none
  std::string request_log;              // file, "-": standard error, "": none
  bool request_log_prompts = false;

  bool has_keys() const { return !api_keys.empty() || !api_key_file.empty(); }
  bool has_tls() const { return !ssl_certfile.empty(); }
  void Validate(std::vector<std::string>* violations) const;
};

}  // namespace nibble::server
