// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The gRPC front end: nibble.v1.Nibble, grpc.health.v1.Health and server reflection on one port.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"
#include "server/admission/generation_service.h"

namespace nibble::server {

struct GrpcServerConfig {
  std::string host = "127.0.0.1";
  int port = 8001;                           // 0: any free port, see GrpcServer::port()
  int max_receive_message_bytes = 16 << 20;  // larger: RESOURCE_EXHAUSTED naming the limit
  int64_t max_stream_pending_bytes = int64_t{4} << 20;  // unread by a slow client; more: cut off
};

class GrpcServer {
 public:
  // Binds and serves. UNAVAILABLE naming the address when it cannot be bound. `service` is not
  // owned and must outlive the server. Health answers SERVING for "" and "nibble.v1.Nibble" while
  // `service` is Ready(), and follows it within a tenth of a second.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const GrpcServerConfig& config,
                                                           GenerationService* service);
  virtual ~GrpcServer() = default;  // Stop()s

  virtual int port() const = 0;
  // Takes no new calls, waits up to `grace_ms` for those in flight, cancels the rest. Idempotent;
  // calls must not overlap.
  virtual void Stop(int64_t grace_ms) = 0;
};

}  // namespace nibble::server
