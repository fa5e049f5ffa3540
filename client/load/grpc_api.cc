// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/load/grpc_api.h"

#include <chrono>
#include <numeric>
#include <utility>

#include "google/protobuf/util/json_util.h"

#include "client/load/grpc_channel.h"
#include "client/load/grpc_transport.h"
#include "client/load/limits.h"
#include "nibble/v1/nibble.grpc.pb.h"

namespace nibble::client {
namespace {

constexpr auto kCallTimeout = std::chrono::seconds(30);
constexpr auto kInterruptInterval = std::chrono::milliseconds(100);

absl::StatusOr<v1::SamplingParams> MakeSampling(const RequestFormat& format) {
  v1::SamplingParams params;
  const SamplingOptions& sampling = format.sampling;
  if (sampling.temperature) params.set_temperature(static_cast<float>(*sampling.temperature));
  if (sampling.top_p) params.set_top_p(static_cast<float>(*sampling.top_p));
  if (sampling.top_k) params.set_top_k(static_cast<int32_t>(*sampling.top_k));
  if (sampling.min_p) params.set_min_p(static_cast<float>(*sampling.min_p));
  if (sampling.frequency_penalty) {
    params.set_frequency_penalty(static_cast<float>(*sampling.frequency_penalty));
  }
  if (sampling.presence_penalty) {
    params.set_presence_penalty(static_cast<float>(*sampling.presence_penalty));
  }
  if (sampling.repetition_penalty) {
    params.set_repetition_penalty(static_cast<float>(*sampling.repetition_penalty));
  }
  params.set_ignore_eos(format.ignore_eos);
  if (format.extra_body.empty()) return params;
  v1::SamplingParams extra;
  const auto status = google::protobuf::util::JsonStringToMessage(format.extra_body, &extra);
  if (!status.ok()) {
    return InvalidArgument("--extra-body: no JSON of nibble.v1.SamplingParams: {}",
                           status.ToString());
  }
  if (extra.has_max_tokens()) {
    return InvalidArgument("--extra-body: 'max_tokens' is set for each request");
  }
  params.MergeFrom(extra);
  return params;
}

class GrpcApi final : public ServerApi {
 public:
  GrpcApi(const LoadOptions& options, const std::shared_ptr<grpc::Channel>& channel)
      : options_(options), stub_(v1::Nibble::NewStub(channel)) {}

  std::string address() const override { return options_.grpc; }
  void SetInterrupt(const std::atomic<bool>* interrupted) override { interrupted_ = interrupted; }

  absl::StatusOr<std::vector<ServedModel>> ListModels() override {
    v1::ListModelsResponse response;
    NIBBLE_RETURN_IF_ERROR(
        Ask(&v1::Nibble::Stub::AsyncListModels, v1::ListModelsRequest(), &response));
    std::vector<ServedModel> models;
    for (const v1::ModelInfo& model : response.models()) {
      models.push_back({.id = model.id(),
                        .max_model_len = model.max_model_len(),
                        .vocab_size = model.vocab_size()});
    }
    if (models.empty()) return NotFound("{} lists no models", address());
    return models;
  }

  void SetModel(const ServedModel& model) override { model_ = model; }

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text) override {
    v1::TokenizeRequest request;
    request.set_model(model_.id);
    request.set_text(std::string(text));
    request.set_add_special_tokens(false);
    v1::TokenizeResponse response;
    NIBBLE_RETURN_IF_ERROR(Ask(&v1::Nibble::Stub::AsyncTokenize, request, &response));
    return std::vector<int32_t>(response.token_ids().begin(), response.token_ids().end());
  }

  absl::StatusOr<std::string> Decode(std::span<const int32_t> ids) override {
    v1::DetokenizeRequest request;
    request.set_model(model_.id);
    request.mutable_token_ids()->Assign(ids.begin(), ids.end());
    v1::DetokenizeResponse response;
    NIBBLE_RETURN_IF_ERROR(Ask(&v1::Nibble::Stub::AsyncDetokenize, request, &response));
    return response.text();
  }

  absl::StatusOr<std::vector<int32_t>> PlainTokens() override {
    if (model_.vocab_size < 1 || model_.vocab_size > kMaxTokens) {
      return Unavailable("{} says that {} has {} tokens, want 1 to {}", address(), model_.id,
                         model_.vocab_size, kMaxTokens);
    }
    std::vector<int32_t> tokens(static_cast<size_t>(model_.vocab_size));
    std::iota(tokens.begin(), tokens.end(), 0);
    return tokens;
  }

  absl::StatusOr<std::unique_ptr<Transport>> MakeTransport(const RequestFormat& format) override {
    NIBBLE_ASSIGN_OR_RETURN(v1::SamplingParams sampling, MakeSampling(format));
    return MakeGrpcTransport(options_, format, std::move(sampling));
  }

 private:
  template <typename Request, typename Response>
  absl::Status Ask(std::unique_ptr<grpc::ClientAsyncResponseReader<Response>> (
                       v1::Nibble::Stub::*method)(grpc::ClientContext*, const Request&,
                                                  grpc::CompletionQueue*),
                   const Request& request, Response* response) {
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    context.set_deadline(std::chrono::system_clock::now() + kCallTimeout);
    for (const auto& [name, value] : MakeMetadata(options_)) context.AddMetadata(name, value);
    const auto reader = (stub_.get()->*method)(&context, request, &queue);
    grpc::Status answer;
    reader->Finish(response, &answer, nullptr);
    const auto interrupted = [&] { return interrupted_ != nullptr && interrupted_->load(); };
    void* tag = nullptr;
    bool ok = false;
    // Ends by the call's deadline.
    while (queue.AsyncNext(&tag, &ok, std::chrono::system_clock::now() + kInterruptInterval) ==
           grpc::CompletionQueue::TIMEOUT) {
      if (interrupted()) context.TryCancel();
    }
    if (interrupted()) return absl::CancelledError("interrupted");
    const absl::Status status = FromGrpc(answer);
    if (status.ok()) return status;
    std::string text = fmt::format("{}: {}", address(), std::string(status.message()));
    if (absl::IsUnauthenticated(status) || absl::IsPermissionDenied(status)) {
      text += "\n--api-key or NIBBLE_API_KEY has the server's key";
    }
    return absl::Status(status.code(), text);
  }

  const LoadOptions options_;
  const std::unique_ptr<v1::Nibble::Stub> stub_;
  const std::atomic<bool>* interrupted_ = nullptr;
  ServedModel model_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ServerApi>> MakeGrpcApi(const LoadOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<std::shared_ptr<grpc::Channel>> channels,
                          MakeChannels(options, 1));
  return std::make_unique<GrpcApi>(options, channels.front());
}

}  // namespace nibble::client
