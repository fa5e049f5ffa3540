// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/access_setup.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>

#include "base/log.h"
#include "server/health/health_routes.h"

namespace nibble::cli {
namespace {

server::ClientCertificates ClientsOf(const std::string& name) {
  if (name == "required") return server::ClientCertificates::kRequired;
  if (name == "optional") return server::ClientCertificates::kOptional;
  return server::ClientCertificates::kNone;
}

}  // namespace

absl::Status CheckReadable(std::string_view option, const std::string& file) {
  if (file.empty()) return absl::OkStatus();
  std::error_code error;
  if (::access(file.c_str(), R_OK) != 0) {
    error = std::error_code(errno, std::generic_category());
  } else if (std::filesystem::is_directory(file, error)) {
    error = std::make_error_code(std::errc::is_a_directory);
  }
  if (!error) return absl::OkStatus();
  return InvalidArgument("{} {}: {}", option, file, error.message());
}

absl::StatusOr<AccessSetup> SetUpAccess(const server::GuardOptions& options) {
  NIBBLE_RETURN_IF_ERROR(CheckReadable("--api-key-file", options.api_key_file));
  NIBBLE_RETURN_IF_ERROR(CheckReadable("--ssl-certfile", options.ssl_certfile));
  NIBBLE_RETURN_IF_ERROR(CheckReadable("--ssl-keyfile", options.ssl_keyfile));
  NIBBLE_RETURN_IF_ERROR(CheckReadable("--ssl-ca-certs", options.ssl_ca_certs));
  AccessSetup access;
  if (options.has_keys()) {
    NIBBLE_ASSIGN_OR_RETURN(access.keys, server::ApiKeys::Create({.keys = options.api_keys,
                                                                  .file = options.api_key_file}));
    log::Info("API keys: {}; all but health needs one", access.keys->size());
  }
  if (options.has_tls()) {
    NIBBLE_ASSIGN_OR_RETURN(
        access.tls, server::TlsSource::Create({.cert_file = options.ssl_certfile,
                                               .key_file = options.ssl_keyfile,
                                               .ca_file = options.ssl_ca_certs,
                                               .clients = ClientsOf(options.ssl_cert_reqs)}));
  }
  if (!options.request_log.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(
        access.log, server::RequestLog::Open(
                        {.path = options.request_log, .with_texts = options.request_log_prompts}));
  }
  return access;
}

server::GuardState StateOf(const AccessSetup& access) {
  server::GuardState state;
  if (access.tls != nullptr) {
    state.certificate_expiry_unix_seconds = access.tls->current().material->not_after_unix_seconds;
  }
  if (access.keys != nullptr) {
    state.key_file_is_stale = access.keys->file_is_stale();
    state.num_key_file_errors = access.keys->num_file_errors();
  }
  return state;
}

void TakeApiKeyFromEnvironment(server::GuardOptions* options) {
  constexpr const char* kName = "NIBBLE_API_KEY";
  if (const char* value = std::getenv(kName); value != nullptr)
    options->api_keys.emplace_back(value);
  ::unsetenv(kName);
}

void LogHttp(const server::HttpOutcome& outcome, server::RequestLog* log) {
  const bool is_probe = std::find(server::kHealthPaths.begin(), server::kHealthPaths.end(),
                                  outcome.route) != server::kHealthPaths.end();
  if (log == nullptr || (is_probe && outcome.status == 200)) return;
  log->Add({.protocol = "http",
            .request_id = std::string(outcome.request_id),
            .route = std::string(outcome.route),
            .method = std::string(outcome.method),
            .status = outcome.status,
            .peer = std::string(outcome.remote_address),
            .e2e_seconds = outcome.seconds,
            .facts = outcome.trace->facts()});
}

}  // namespace nibble::cli
