// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The OpenAI HTTP API over the native path: JSON in, JSON or server-sent events out.
//
//   OpenAiApi api(&service, {.version = "0.1.0", .metrics = [&] { return registry.Render(); }});
//   api.Register(http.get());
//   http->Start();
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "server/admission/service_gate.h"
#include "server/http/http_server.h"

namespace nibble::server {

struct OpenAiConfig {
  std::string model_name;          // what the service will have: the path of its own in /v1/models
  std::string version;             // told by /version
  std::string system_fingerprint;  // told in every answer; "": null
  // Body of /metrics in Prometheus text format, rendered on an io thread, also while the gate is
  // closed; unset: no such route.
  std::function<std::string()> metrics;
  // A stream whose client leaves more than this unread is cancelled.
  int64_t max_queued_bytes = int64_t{4} << 20;
  // Requests with a body of more than this are read, rendered and tokenized on threads of their
  // own; 429 when more than max_waiting_preparations wait for these.
  int64_t max_inline_body_bytes = int64_t{64} << 10;
  int num_preparation_threads = 2;
  int64_t max_waiting_preparations = 64;
};

// Thread-safe. While `gate` is closed, requests are refused. It, and the service behind it, must
// outlive this and every answer: stop the HTTP server before all three.
class OpenAiApi {
 public:
  OpenAiApi(const ServiceGate* gate, OpenAiConfig config);
  ~OpenAiApi();  // requests that wait for a preparation thread are dropped
  OpenAiApi(const OpenAiApi&) = delete;
  OpenAiApi& operator=(const OpenAiApi&) = delete;

  // Adds the routes and the OpenAI form of the server's own errors. Before HttpServer::Start.
  void Register(HttpServer* server);

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace nibble::server
