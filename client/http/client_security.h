// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a client needs for a guarded server: a key, and TLS.
#pragma once

#include <memory>
#include <string>

#include "base/status.h"

struct ssl_ctx_st;

namespace nibble::client {

// As the options --api-key, --ca-cert, --cert, --key and --insecure say.
struct ClientSecurity {
  std::string api_key;    // sent as "Authorization: Bearer KEY"; empty: none
  std::string ca_cert;    // PEM file: who signed the server's certificate; empty: the system's list
  std::string cert;       // PEM file: this client's certificate chain; empty: none
  std::string key;        // PEM file: its key
  bool insecure = false;  // any certificate of the server is taken

  // INVALID_ARGUMENT naming all that does not fit: a key that no header can carry, a certificate
  // without its key.
  absl::Status Validate() const;
  // INVALID_ARGUMENT for options of TLS without it: who gives them believes to be guarded.
  absl::Status CheckFor(bool tls) const;
};

// From NIBBLE_API_KEY where the option is not given; the variable is removed, so that no child
// inherits it.
void TakeApiKeyFromEnvironment(ClientSecurity* security);

// For TLS 1.2 and above with checked certificates. INVALID_ARGUMENT naming the file that cannot be
// used and why. Threads may share it.
absl::StatusOr<std::shared_ptr<ssl_ctx_st>> MakeClientTlsContext(const ClientSecurity& security);

}  // namespace nibble::client
