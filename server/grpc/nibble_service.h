// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// nibble.v1.Nibble over the native path. Callback API: no thread waits for a call.
#pragma once

#include <cstdint>

#include "nibble/v1/nibble.grpc.pb.h"
#include "server/admission/generation_service.h"

namespace nibble::server {

class NibbleService final : public v1::Nibble::CallbackService {
 public:
  NibbleService(GenerationService* service, int64_t max_stream_pending_bytes)
      : service_(service), max_stream_pending_bytes_(max_stream_pending_bytes) {}

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
  GenerationService* service_;
  int64_t max_stream_pending_bytes_;
};

}  // namespace nibble::server
