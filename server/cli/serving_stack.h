// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Everything that serves one model, put together: model, engine, native path, HTTP, gRPC, metrics.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/status.h"
#include "engine/engine.h"
#include "server/admission/generation_service.h"
#include "server/cli/expert_recorder.h"
#include "server/cli/model_backend.h"
#include "server/config.h"
#include "server/grpc/grpc_server.h"
#include "server/http/http_server.h"
#include "server/metrics/expert_metrics.h"
#include "server/metrics/metrics.h"
#include "server/metrics/rank_metrics.h"
#include "server/openai/openai_api.h"

namespace nibble::cli {

// Invariant: members are declared in the order in which they are built, so that destruction (also
// of a stack that was built halfway) stops the front ends before the engine, and the engine before
// what it uses: observer, tokenizer, threads. An answer in progress outlives its front end as a
// sink of the engine; it uses nothing but the tokenizer.
class ServingStack {
 public:
  // Loads, binds and serves.
  static absl::StatusOr<std::unique_ptr<ServingStack>> Start(const server::ServeConfig& config);

  // What the operator sees once the server is ready.
  std::string Banner() const;

  // Why no request will ever be served again; OK while one may be.
  absl::Status Failure() const;

  // Not ready from now on; waits until all answers are complete or `timeout_seconds` are over, then
  // stops everything. DEADLINE_EXCEEDED when answers had to be cut off.
  absl::Status Shutdown(int timeout_seconds);

 private:
  explicit ServingStack(const server::ServeConfig& config) : config_(config) {}
  absl::Status StartModel();
  absl::Status StartEngine();
  absl::Status WatchExperts(engine::Executor* executor);
  absl::Status StartService();
  absl::Status StartHttp();
  absl::Status StartGrpc();

  server::ServeConfig config_;
  std::unique_ptr<server::RankMetrics> rank_metrics_;  // null: the model is in this process
  ModelBackend backend_;                               // its executor is the engine's
  int64_t max_model_len_ = 0;
  std::unique_ptr<server::Metrics> metrics_;
  std::unique_ptr<server::ExpertMetrics> expert_metrics_;  // null: a dense model
  std::function<engine::ExpertLoad()> expert_load_;        // of the engine's executor
  std::unique_ptr<engine::Engine> engine_;
  std::unique_ptr<ExpertRecorder> recorder_;  // null: nothing is recorded
  std::unique_ptr<server::GenerationService> service_;
  std::unique_ptr<server::OpenAiApi> api_;
  std::unique_ptr<server::HttpServer> http_;
  std::unique_ptr<server::GrpcServer> grpc_;
};

}  // namespace nibble::cli
