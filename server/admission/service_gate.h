// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Where front ends find the service. They listen before the model is loaded and as long as requests
// are being finished; the gate is open in between.
#pragma once

#include <atomic>

#include "base/status.h"
#include "server/admission/generation_service.h"

namespace nibble::server {

// Thread-safe, never blocks.
class ServiceGate {
 public:
  ServiceGate() = default;
  // Already open.
  explicit ServiceGate(GenerationService* service) { Open(service); }
  ServiceGate(const ServiceGate&) = delete;
  ServiceGate& operator=(const ServiceGate&) = delete;

  // `service` must outlive every front end that holds this gate.
  void Open(GenerationService* service) { service_.store(service, std::memory_order_release); }
  // For good. A request that is already in may still be refused by the engine, as Enter() would.
  void Close() { is_closed_.store(true); }

  // For one request, from its beginning to its end. UNAVAILABLE while the model is loaded, and
  // while the server drains.
  absl::StatusOr<GenerationService*> Enter() const {
    if (is_closed_.load()) return Unavailable("the server is shutting down");
    GenerationService* const service = service_.load(std::memory_order_acquire);
    if (service == nullptr) return Unavailable("the server is loading its model; try again later");
    return service;
  }

 private:
  std::atomic<GenerationService*> service_{nullptr};
  std::atomic<bool> is_closed_{false};
};

}  // namespace nibble::server
