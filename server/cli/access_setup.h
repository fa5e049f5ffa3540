// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What stands in front of a server's routes and behind its answers, made of the options before
// anything else: keys, certificates, the request log.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/status.h"
#include "server/auth/api_keys.h"
#include "server/guard_options.h"
#include "server/http/http_server.h"
#include "server/metrics/guard_metrics.h"
#include "server/request_log/request_log.h"
#include "server/tls/tls_source.h"

namespace nibble::cli {

struct AccessSetup {
  std::shared_ptr<const server::ApiKeys> keys;  // null: everybody may use it
  std::shared_ptr<server::TlsSource> tls;       // null: plain
  std::shared_ptr<server::RequestLog> log;      // null: none
};

// Whether `file` can be read, as far as can be told without reading it (it may be a pipe); naming
// option, file and reason. Empty: not given.
absl::Status CheckReadable(std::string_view option, const std::string& file);

// Every error names its option.
absl::StatusOr<AccessSetup> SetUpAccess(const server::GuardOptions& options);

// For /metrics.
server::GuardState StateOf(const AccessSetup& access);

// Adds the key of NIBBLE_API_KEY, also an empty one, which is refused as such: a secret that did
// not arrive must not open the server. The variable is removed, so that no child inherits it.
void TakeApiKeyFromEnvironment(server::GuardOptions* options);

// The log's line of one HTTP request. Probes that found the server well leave none: they come every
// few seconds.
void LogHttp(const server::HttpOutcome& outcome, server::RequestLog* log);

}  // namespace nibble::cli
