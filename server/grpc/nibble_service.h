// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// nibble.v1.Nibble over the native path. Callback API: no thread waits for a call.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "nibble/v1/nibble.grpc.pb.h"
#include "server/admission/service_gate.h"
#include "server/grpc/call_log.h"

namespace nibble::server {

class NibbleService final : public v1::Nibble::CallbackService {
 public:
  // `log` and `observer` may be null.
  NibbleService(const ServiceGate* gate, int64_t max_stream_pending_bytes,
                std::shared_ptr<RequestLog> log, GrpcObserver observer)
      : gate_(gate),
        max_stream_pending_bytes_(max_stream_pending_bytes),
        calls_(std::move(log), std::move(observer)) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override;
  grpc::ServerWriteReactor<v1::GenerateResponse>* Chat(grpc::CallbackServerContext* context,
                                                       const v1::ChatRequest* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;
  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override;

 private:
  const ServiceGate* gate_;
  int64_t max_stream_pending_bytes_;
  CallLog calls_;
};

}  // namespace nibble::server
