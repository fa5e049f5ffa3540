// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/grpc/nibble_service.h"

#include <string>
#include <utility>
#include <vector>

#include "server/grpc/convert.h"
#include "server/grpc/generation_stream.h"

namespace nibble::server {
namespace {

grpc::ServerUnaryReactor* FinishWith(grpc::CallbackServerContext* context, LoggedCall call,
                                     const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  AddRetryHint(status, context);
  const grpc::Status answer = ToGrpcStatus(status);
  call.End(answer.error_code());
  reactor->Finish(answer);
  return reactor;
}

absl::StatusOr<GenerationService*> ServiceOf(const ServiceGate& gate, const std::string& model) {
  NIBBLE_ASSIGN_OR_RETURN(GenerationService* const service, gate.Enter());
  NIBBLE_RETURN_IF_ERROR(service->CheckModelName(model));
  return service;
}

}  // namespace

grpc::ServerWriteReactor<v1::GenerateResponse>* NibbleService::Generate(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  return StartGenerationStream(context, gate_->Enter(), ToNative(*request),
                               max_stream_pending_bytes_, calls_.Begin(context, "Generate"));
}

grpc::ServerWriteReactor<v1::GenerateResponse>* NibbleService::Chat(
    grpc::CallbackServerContext* context, const v1::ChatRequest* request) {
  return StartGenerationStream(context, gate_->Enter(), ToNative(*request),
                               max_stream_pending_bytes_, calls_.Begin(context, "Chat"));
}

grpc::ServerUnaryReactor* NibbleService::Tokenize(grpc::CallbackServerContext* context,
                                                  const v1::TokenizeRequest* request,
                                                  v1::TokenizeResponse* response) {
  LoggedCall call = calls_.Begin(context, "Tokenize");
  const absl::StatusOr<GenerationService*> service = ServiceOf(*gate_, request->model());
  if (!service.ok()) return FinishWith(context, std::move(call), service.status());
  const bool add_special_tokens =
      !request->has_add_special_tokens() || request->add_special_tokens();
  const absl::StatusOr<std::vector<int32_t>> ids =
      (*service)->Tokenize(request->text(), add_special_tokens);
  if (!ids.ok()) return FinishWith(context, std::move(call), ids.status());
  response->mutable_token_ids()->Add(ids->begin(), ids->end());
  response->set_max_model_len((*service)->model().max_model_len);
  return FinishWith(context, std::move(call), absl::OkStatus());
}

grpc::ServerUnaryReactor* NibbleService::Detokenize(grpc::CallbackServerContext* context,
                                                    const v1::DetokenizeRequest* request,
                                                    v1::DetokenizeResponse* response) {
  LoggedCall call = calls_.Begin(context, "Detokenize");
  const absl::StatusOr<GenerationService*> service = ServiceOf(*gate_, request->model());
  if (!service.ok()) return FinishWith(context, std::move(call), service.status());
  absl::StatusOr<std::string> text =
      (*service)->Detokenize({request->token_ids().begin(), request->token_ids().end()});
  if (!text.ok()) return FinishWith(context, std::move(call), text.status());
  response->set_text(*std::move(text));
  return FinishWith(context, std::move(call), absl::OkStatus());
}

grpc::ServerUnaryReactor* NibbleService::ListModels(grpc::CallbackServerContext* context,
                                                    const v1::ListModelsRequest* /*request*/,
                                                    v1::ListModelsResponse* response) {
  LoggedCall call = calls_.Begin(context, "ListModels");
  const absl::StatusOr<GenerationService*> service = gate_->Enter();
  if (!service.ok()) return FinishWith(context, std::move(call), service.status());
  const ServedModel& model = (*service)->model();
  v1::ModelInfo* info = response->add_models();
  info->set_id(model.name);
  info->set_created_unix_seconds(model.created_unix_seconds);
  info->set_max_model_len(model.max_model_len);
  info->set_vocab_size(model.vocab_size);
  return FinishWith(context, std::move(call), absl::OkStatus());
}

}  // namespace nibble::server
