// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/http/client_security.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <system_error>

namespace nibble::client {
namespace {

std::string LastError() {
  const unsigned long code = ERR_peek_last_error();
  ERR_clear_error();
  const char* reason = ERR_reason_error_string(code);
  return reason == nullptr ? "no PEM file that can be read" : reason;
}

// OpenSSL does not say why it cannot open a file.
absl::Status CheckReadable(const char* option, const std::string& file) {
  if (file.empty() || ::access(file.c_str(), R_OK) == 0) return absl::OkStatus();
  return InvalidArgument("{} {}: {}", option, file, std::generic_category().message(errno));
}

// Nobody is there to be asked for the password of a key.
int NoPassword(char*, int, int, void*) { return -1; }

}  // namespace

absl::Status ClientSecurity::Validate() const {
  constexpr size_t kMaxKeyBytes = 4096;
  if (api_key.size() > kMaxKeyBytes) {
    return InvalidArgument("--api-key has {} bytes, the limit is {}", api_key.size(), kMaxKeyBytes);
  }
  if (!std::all_of(api_key.begin(), api_key.end(), [](char c) { return c > 0x20 && c < 0x7f; })) {
    return InvalidArgument("--api-key: want visible ASCII characters only");
  }
  if (cert.empty() != key.empty()) {
    return InvalidArgument("--cert and --key: want both or none");
  }
  if (insecure && !ca_cert.empty()) {
    return InvalidArgument("--ca-cert and --insecure: want one of them");
  }
  return absl::OkStatus();
}

absl::Status ClientSecurity::CheckFor(bool tls) const {
  NIBBLE_RETURN_IF_ERROR(Validate());
  if (tls || (ca_cert.empty() && cert.empty() && key.empty() && !insecure)) {
    return absl::OkStatus();
  }
  return InvalidArgument(
      "--ca-cert, --cert, --key and --insecure go with an address of https://, not of http://");
}

void TakeApiKeyFromEnvironment(ClientSecurity* security) {
  constexpr const char* kName = "NIBBLE_API_KEY";
  const char* value = std::getenv(kName);
  if (security->api_key.empty() && value != nullptr) security->api_key = value;
  ::unsetenv(kName);
}

absl::StatusOr<std::shared_ptr<ssl_ctx_st>> MakeClientTlsContext(const ClientSecurity& security) {
  NIBBLE_RETURN_IF_ERROR(security.Validate());
  NIBBLE_RETURN_IF_ERROR(CheckReadable("--ca-cert", security.ca_cert));
  NIBBLE_RETURN_IF_ERROR(CheckReadable("--cert", security.cert));
  NIBBLE_RETURN_IF_ERROR(CheckReadable("--key", security.key));
  const std::shared_ptr<SSL_CTX> context(SSL_CTX_new(TLS_client_method()), SSL_CTX_free);
  if (context == nullptr) return Internal("cannot make a TLS context: {}", LastError());
  SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  SSL_CTX_set_mode(context.get(), SSL_MODE_RELEASE_BUFFERS);
  SSL_CTX_set_default_passwd_cb(context.get(), NoPassword);
  if (security.insecure) {
    SSL_CTX_set_verify(context.get(), SSL_VERIFY_NONE, nullptr);
  } else {
    SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
    if (security.ca_cert.empty()) {
      SSL_CTX_set_default_verify_paths(context.get());
    } else if (SSL_CTX_load_verify_file(context.get(), security.ca_cert.c_str()) != 1) {
      return InvalidArgument("--ca-cert {}: {}", security.ca_cert, LastError());
    }
  }
  if (security.cert.empty()) return context;
  if (SSL_CTX_use_certificate_chain_file(context.get(), security.cert.c_str()) != 1) {
    return InvalidArgument("--cert {}: {}", security.cert, LastError());
  }
  if (SSL_CTX_use_PrivateKey_file(context.get(), security.key.c_str(), SSL_FILETYPE_PEM) != 1) {
    return InvalidArgument("--key {}: {}", security.key, LastError());
  }
  if (SSL_CTX_check_private_key(context.get()) != 1) {
    return InvalidArgument("--key {} is not the one of --cert {}", security.key, security.cert);
  }
  return context;
}

}  // namespace nibble::client
