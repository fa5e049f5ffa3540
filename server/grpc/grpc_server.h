// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The gRPC front end: nibble.v1.Nibble, grpc.health.v1.Health and server reflection on one port.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/status.h"
#include "server/admission/service_gate.h"
#include "server/auth/api_keys.h"
#include "server/grpc/call_log.h"
#include "server/request_log/request_log.h"
#include "server/tls/tls_source.h"

namespace nibble::server {

struct GrpcServerConfig {
  std::string host = "127.0.0.1";
  int port = 8001;                           // 0: any free port, see GrpcServer::port()
  int max_receive_message_bytes = 16 << 20;  // larger: RESOURCE_EXHAUSTED naming the limit
  // What all connections together may hold, of messages that are not whole above all; those that
  // want more are closed.
  int64_t max_buffered_bytes = int64_t{128} << 20;
  int64_t max_stream_pending_bytes = int64_t{4} << 20;  // unread by a slow client; more: cut off
  int max_metadata_bytes = 64 << 10;                    // of a call; more: RESOURCE_EXHAUSTED
  int max_concurrent_streams = 16384;                   // of a connection; more wait at the client
  int64_t max_connections = 16384;                      // more are closed as soon as they come
  int idle_seconds = 600;  // of a connection without calls; then its client is told to leave
  int handshake_timeout_seconds = 10;
  int keepalive_seconds = 60;      // between pings to a silent client; one that is gone is let go
  std::shared_ptr<TlsSource> tls;  // null: plain
  std::shared_ptr<const ApiKeys> api_keys;  // null: everybody may call
  std::shared_ptr<RequestLog> request_log;  // null: none
  GrpcObserver observer;                    // of calls that end or are refused; may be null
};

class GrpcServer {
 public:
  // Binds and serves: refusing calls while `gate` is closed, which is not owned and must outlive
  // the server. UNAVAILABLE naming the address when it cannot be bound. Health answers SERVING for
  // "" and "nibble.v1.Nibble" while `is_ready` is true, and follows it within a tenth of a second;
  // it is asked from a thread of the server and must not block.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const GrpcServerConfig& config,
                                                           const ServiceGate* gate,
                                                           std::function<bool()> is_ready);
  virtual ~GrpcServer() = default;  // Stop()s

  virtual int port() const = 0;
  virtual int64_t num_connections() const = 0;
  // Takes no new calls, waits up to `grace_ms` for those in flight, cancels the rest. Idempotent;
  // calls must not overlap.
  virtual void Stop(int64_t grace_ms) = 0;
};

}  // namespace nibble::server
