// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Everything that serves one model, put together: model, engine, native path, HTTP, gRPC, metrics.
// The front ends come first: probes are answered, and requests refused, while the model is loaded.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/status.h"
#include "engine/engine.h"
#include "server/admission/generation_service.h"
#include "server/admission/service_gate.h"
#include "server/cli/access_setup.h"
#include "server/cli/chat_setup.h"
#include "server/cli/expert_recorder.h"
#include "server/cli/model_backend.h"
#include "server/config.h"
#include "server/grpc/grpc_server.h"
#include "server/health/health.h"
#include "server/health/health_log.h"
#include "server/http/http_server.h"
#include "server/metrics/expert_metrics.h"
#include "server/metrics/metrics.h"
#include "server/metrics/rank_metrics.h"
#include "server/metrics/stats_log.h"
#include "server/openai/openai_api.h"

namespace nibble::cli {

// Invariants
//  1. Members are declared so that destruction (also of a stack that was built halfway) stops the
//     front ends before the engine, and the engine before what it uses: observer, tokenizer,
//     threads. An answer in progress outlives its front end as a sink of the engine; it uses
//     nothing but the tokenizer.
//  2. What is built after the front ends is seen by their threads through gate_ or is_loaded_ only.
class ServingStack {
 public:
  // Binds, loads and serves.
  static absl::StatusOr<std::unique_ptr<ServingStack>> Start(const server::ServeConfig& config,
                                                             AccessSetup access);

  // What the operator sees once the server is ready.
  std::string Banner() const;

  // Why no request will ever be served again; OK while one may be.
  absl::Status Failure() const;

  // Not ready from now on; takes requests for --drain-delay, waits until all answers are complete
  // or --shutdown-timeout is over, then stops everything. DEADLINE_EXCEEDED when answers had to be
  // cut off. The process ends, with status 1, if the engine cannot be stopped.
  absl::Status Shutdown();

 private:
  ServingStack(const server::ServeConfig& config, AccessSetup access);
  absl::Status CheckFirst();
  absl::Status StartModel();
  absl::Status StartEngine();
  absl::Status WatchExperts(engine::Executor* executor);
  absl::Status StartService();
  absl::Status StartHttp();
  absl::Status StartHealthPort();
  absl::Status StartGrpc();
  void BeginServing();
  std::string Addresses() const;
  void WarnOfOpenDoors() const;
  std::string MetricsText();

  server::ServeConfig config_;
  const AccessSetup access_;
  ChatSetup chat_;  // until the service has it
  server::Health health_;
  server::ServiceGate gate_;
  std::atomic<bool> is_loaded_{false};
  std::unique_ptr<server::RankMetrics> rank_metrics_;  // null: the model is in this process
  ModelBackend backend_;                               // its executor is the engine's
  int64_t max_model_len_ = 0;
  std::unique_ptr<server::Metrics> metrics_;               // the engine's observer
  std::unique_ptr<server::ExpertMetrics> expert_metrics_;  // null: a dense model
  std::unique_ptr<server::WorkCounter> work_counter_;      // in front of metrics_; null: none
  std::function<engine::ExpertLoad()> expert_load_;        // of the engine's executor
  std::unique_ptr<engine::Engine> engine_;
  std::unique_ptr<ExpertRecorder> recorder_;  // null: nothing is recorded
  std::unique_ptr<server::GenerationService> service_;
  std::unique_ptr<server::OpenAiApi> api_;
  std::unique_ptr<server::HttpServer> http_;
  std::unique_ptr<server::HttpServer> health_port_;  // null: none
  std::unique_ptr<server::GrpcServer> grpc_;         // null: none
  std::unique_ptr<server::HealthLog> health_log_;
  std::unique_ptr<server::StatsLog> stats_log_;  // null: none
};

}  // namespace nibble::cli
