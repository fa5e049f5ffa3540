// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// TLS of a server, as options say it.
#pragma once

#include <string>

namespace nibble::server {

enum class ClientCertificates { kNone, kOptional, kRequired };

struct TlsOptions {
  std::string cert_file;  // PEM: the server's certificate, then those between it and the root
  std::string key_file;   // PEM: its key, without a password
  std::string ca_file;    // PEM: who signs clients' certificates; empty with kNone
  // kOptional: a client may come without one, but not with a bad one.
  ClientCertificates clients = ClientCertificates::kNone;
};

}  // namespace nibble::server
