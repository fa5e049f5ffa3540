// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The contents of the TLS files, checked, and what OpenSSL makes of them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"
#include "server/tls/tls_options.h"

struct ssl_ctx_st;

namespace nibble::server {

struct TlsMaterial {
  std::string cert_chain;   // PEM
  std::string private_key;  // PEM
  std::string ca;           // PEM; empty: clients' certificates are not asked for
  std::string subject;      // of the first certificate, for the log
  std::string not_after;    // the end of its time, for the log
  int64_t not_after_unix_seconds = 0;

  friend bool operator==(const TlsMaterial&, const TlsMaterial&) = default;
};

// INVALID_ARGUMENT naming the file and what is wrong: not PEM, a key with a password, a key that is
// not the certificate's, a certificate whose time is over or has not come; NOT_FOUND,
// PERMISSION_DENIED and so on when a file cannot be read.
absl::StatusOr<TlsMaterial> ReadTlsMaterial(const TlsOptions& options);

// TLS 1.2 and 1.3, ciphers with forward secrecy and authentication in one (AEAD), ALPN "http/1.1",
// no renegotiation. Threads may share it.
absl::StatusOr<std::shared_ptr<ssl_ctx_st>> MakeServerContext(const TlsMaterial& material,
                                                              ClientCertificates clients);

}  // namespace nibble::server
