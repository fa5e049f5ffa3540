// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Who may connect and who may call: TLS with certificates that are read again, and API keys in
// front of every method, also of reflection and of those that do not exist; grpc.health.v1 alone
// needs no key.
#pragma once

#include <memory>

#include "grpcpp/security/server_credentials.h"

#include "server/auth/api_keys.h"
#include "server/grpc/call_log.h"
#include "server/request_log/request_log.h"
#include "server/tls/tls_source.h"

namespace nibble::server {

// `tls` null: plain; `keys` null: everybody may call; `log` and `observer` (may be null) are told
// of what is refused here, which no method ever sees: by the method's name where it is one of
// nibble.v1.Nibble, else as "other". The result has to outlive the server that uses it.
std::shared_ptr<grpc::ServerCredentials> MakeServerCredentials(std::shared_ptr<TlsSource> tls,
                                                               std::shared_ptr<const ApiKeys> keys,
                                                               std::shared_ptr<RequestLog> log,
                                                               GrpcObserver observer);

}  // namespace nibble::server
