// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/grpc/nibble_service.h"

#include <vector>

#include "server/grpc/convert.h"
#include "server/grpc/generation_stream.h"

namespace nibble::server {
namespace {

grpc::ServerUnaryReactor* FinishWith(grpc::CallbackServerContext* context,
                                     const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

}  // namespace

grpc::ServerWriteReactor<v1::GenerateResponse>* NibbleService::Generate(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  return StartGenerationStream(context, service_, ToNative(*request), max_stream_pending_bytes_);
}

grpc::ServerWriteReactor<v1::GenerateResponse>* NibbleService::Chat(
    grpc::CallbackServerContext* context, const v1::ChatRequest* request) {
  return StartGenerationStream(context, service_, ToNative(*request), max_stream_pending_bytes_);
}

grpc::ServerUnaryReactor* NibbleService::Tokenize(grpc::CallbackServerContext* context,
                                                  const v1::TokenizeRequest* request,
                                                  v1::TokenizeResponse* response) {
  if (absl::Status status = service_->CheckModelName(request->model()); !status.ok()) {
    return FinishWith(context, status);
  }
  const bool add_special_tokens =
      !request->has_add_special_tokens() || request->add_special_tokens();
  const absl::StatusOr<std::vector<int32_t>> ids =
      service_->Tokenize(request->text(), add_special_tokens);
  if (!ids.ok()) return FinishWith(context, ids.status());
  response->mutable_token_ids()->Add(ids->begin(), ids->end());
  response->set_max_model_len(service_->model().max_model_len);
  return FinishWith(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* NibbleService::Detokenize(grpc::CallbackServerContext* context,
                                                    const v1::DetokenizeRequest* request,
                                                    v1::DetokenizeResponse* response) {
  if (absl::Status status = service_->CheckModelName(request->model()); !status.ok()) {
    return FinishWith(context, status);
  }
  absl::StatusOr<std::string> text =
      service_->Detokenize({request->token_ids().begin(), request->token_ids().end()});
  if (!text.ok()) return FinishWith(context, text.status());
  response->set_text(*std::move(text));
  return FinishWith(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* NibbleService::ListModels(grpc::CallbackServerContext* context,
                                                    const v1::ListModelsRequest* /*request*/,
                                                    v1::ListModelsResponse* response) {
  const ServedModel& model = service_->model();
  v1::ModelInfo* info = response->add_models();
  info->set_id(model.name);
  info->set_created_unix_seconds(model.created_unix_seconds);
  info->set_max_model_len(model.max_model_len);
  info->set_vocab_size(model.vocab_size);
  return FinishWith(context, absl::OkStatus());
}

}  // namespace nibble::server
