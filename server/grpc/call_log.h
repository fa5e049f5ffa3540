// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The name and the log line of each call, and its place in the metrics.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "grpcpp/server_context.h"
#include "grpcpp/support/status.h"

#include "server/request_log/request_id.h"
#include "server/request_log/request_log.h"
#include "server/request_log/request_trace.h"

namespace nibble::server {

// What is counted of each call that ends: "Chat", "OK", how long it took. Called from any thread.
using GrpcObserver =
    std::function<void(std::string_view method, std::string_view code, double seconds)>;

// "OK", "UNAUTHENTICATED"
std::string_view NameOf(grpc::StatusCode code);

// One call, from its beginning to its end.
class LoggedCall {
 public:
  LoggedCall(std::string id, std::string method, std::string peer, std::shared_ptr<RequestLog> log,
             const GrpcObserver* observer);
  // Once, when the call is over.
  void End(grpc::StatusCode code);
  const std::shared_ptr<RequestTrace>& trace() const { return trace_; }

 private:
  std::string id_;
  std::string method_;
  std::string peer_;
  std::shared_ptr<RequestLog> log_;
  const GrpcObserver* observer_;  // of the server, which outlives its calls
  std::shared_ptr<RequestTrace> trace_ = std::make_shared<RequestTrace>();
};

class CallLog {
 public:
  // `log` may be null: then calls have names, and no lines. So may `observer`.
  CallLog(std::shared_ptr<RequestLog> log, GrpcObserver observer)
      : log_(std::move(log)), observer_(std::move(observer)) {}
  // Names the call: by its x-request-id, or anew; the answer's initial metadata has it.
  LoggedCall Begin(grpc::CallbackServerContext* context, std::string_view method);

 private:
  const std::shared_ptr<RequestLog> log_;
  const GrpcObserver observer_;
  RequestIds ids_;
};

}  // namespace nibble::server
