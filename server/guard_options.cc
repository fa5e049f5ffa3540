// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/guard_options.h"

#include <string_view>

#include "fmt/format.h"

namespace nibble::server {

void GuardOptions::Validate(std::vector<std::string>* violations) const {
  const auto check = [violations](std::string_view option, int64_t value, int64_t low,
                                  int64_t high) {
    if (value >= low && value <= high) return;
    violations->push_back(fmt::format("{} is {}, want {}..{}", option, value, low, high));
  };
  if (ssl_certfile.empty() != ssl_keyfile.empty()) {
    violations->push_back(fmt::format("--ssl-certfile is '{}' and --ssl-keyfile '{}', want both",
                                      ssl_certfile, ssl_keyfile));
  }
  const bool asks_clients = ssl_cert_reqs == "optional" || ssl_cert_reqs == "required";
  if (!asks_clients && ssl_cert_reqs != "none") {
    violations->push_back(fmt::format(
        "--ssl-cert-reqs is '{}', want one of none, optional, required", ssl_cert_reqs));
  }
  if (asks_clients && (ssl_ca_certs.empty() || !has_tls())) {
    violations->push_back(
        fmt::format("--ssl-cert-reqs {} wants --ssl-ca-certs, --ssl-certfile and --ssl-keyfile",
                    ssl_cert_reqs));
  }
  if (!ssl_ca_certs.empty() && ssl_cert_reqs == "none") {
    violations->push_back(
        "--ssl-ca-certs is given, want --ssl-cert-reqs optional or required, or no client would be "
        "asked for a certificate");
  }
  check("--max-header-bytes", max_header_bytes, 256, 64 << 10);
  check("--max-connections", max_connections, 1, 1'000'000);
  check("--http-read-timeout", http_read_timeout_seconds, 1, 86400);
  // Written so that NaN is outside.
  if (request_timeout_seconds != 0 &&
      !(request_timeout_seconds >= 0.001 && request_timeout_seconds <= 86400)) {
    violations->push_back(fmt::format(
        "--request-timeout is {}, want 0 (none) or 0.001..86400 seconds", request_timeout_seconds));
  }
  if (request_log_prompts && request_log.empty()) {
    violations->push_back("--request-log-prompts is given, want --request-log too");
  }
}

}  // namespace nibble::server
