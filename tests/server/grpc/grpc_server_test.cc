// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/grpc/grpc_server.h"

#include <chrono>
#include <future>
#include <thread>

#include "gmock/gmock.h"
#include "grpcpp/generic/generic_stub.h"

#include "tests/server/grpc/grpc_fixture.h"

namespace nibble::server::testing {
namespace {

using engine::FinishReason;
using grpc::StatusCode;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class GrpcServerTest : public GrpcTest {
 protected:
  // The status number of grpc.health.v1 (1: SERVING, 2: NOT_SERVING), or -1. The two messages are
  // written out: their proto is not among the packages.
  int Health(const std::string& service_name) {
    const grpc::Slice slice("\x0a" + std::string(1, static_cast<char>(service_name.size())) +
                            service_name);
    const grpc::ByteBuffer request(&slice, 1);
    grpc::ByteBuffer response;
    grpc::ClientContext context;
    grpc::GenericStub stub(channel_);
    std::promise<grpc::Status> done;
    stub.UnaryCall(&context, "/grpc.health.v1.Health/Check", {}, &request, &response,
                   [&](grpc::Status status) { done.set_value(std::move(status)); });
    const grpc::Status status = done.get_future().get();
    grpc::Slice bytes;
    if (!status.ok() || !response.DumpToSingleSlice(&bytes).ok() || bytes.size() != 2) return -1;
    return bytes.begin()[1];
  }
  void ExpectHealth(int expected) {
    for (const std::string name : {"", "nibble.v1.Nibble"}) {
      EXPECT_TRUE(Eventually([&] { return Health(name) == expected; })) << name;
    }
  }
  // What the server answers to a request that the engine never sees.
  grpc::Status Refusal(const v1::GenerateRequest& request, const std::string& retry_after_ms = "") {
    const auto call = Start(request);
    const grpc::Status status = call->Finish();
    EXPECT_EQ(call->RetryAfterMs(), retry_after_ms) << status.error_message();
    EXPECT_FALSE(status.error_message().empty());
    EXPECT_EQ(engine_.num_requests(), 0);
    return status;
  }
};

TEST_F(GrpcServerTest, EveryFieldArrives) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids(65);
  request.mutable_token_ids()->add_ids(66);
  request.set_priority(-3);
  v1::SamplingParams* sampling = request.mutable_sampling();
  sampling->set_max_tokens(9);
  sampling->set_min_tokens(2);
  sampling->set_temperature(0.5F);
  sampling->set_top_p(0.25F);
  sampling->set_top_k(-1);
  sampling->set_min_p(0.125F);
  sampling->set_repetition_penalty(1.5F);
  sampling->set_presence_penalty(0.75F);
  sampling->set_frequency_penalty(-0.75F);
  (*sampling->mutable_logit_bias())[7] = 2.5F;
  sampling->set_seed(-1);
  sampling->add_stop("s");
  sampling->add_stop_token_ids(3);
  sampling->set_ignore_eos(true);
  sampling->set_include_stop_str_in_output(true);
  sampling->set_skip_special_tokens(false);
  sampling->set_logprobs(4);
  const auto call = StartAdmitted(request);
  const engine::EngineRequest native = engine_.request(0);
  EXPECT_THAT(native.prompt_token_ids, ElementsAre(65, 66));
  EXPECT_EQ(native.priority, -3);
  EXPECT_EQ(native.sampling.max_tokens, 9);
  EXPECT_EQ(native.sampling.min_tokens, 2);
  EXPECT_EQ(native.sampling.temperature, 0.5F);
  EXPECT_EQ(native.sampling.top_p, 0.25F);
  EXPECT_EQ(native.sampling.top_k, 0);
  EXPECT_EQ(native.sampling.min_p, 0.125F);
  EXPECT_EQ(native.sampling.repetition_penalty, 1.5F);
  EXPECT_EQ(native.sampling.presence_penalty, 0.75F);
  EXPECT_EQ(native.sampling.frequency_penalty, -0.75F);
  EXPECT_THAT(native.sampling.logit_bias, ElementsAre(std::pair(7, 2.5F)));
  EXPECT_EQ(native.sampling.seed, ~uint64_t{0});
  EXPECT_THAT(native.sampling.stop, ElementsAre("s"));
  EXPECT_THAT(native.sampling.stop_token_ids, ElementsAre(3));
  EXPECT_TRUE(native.sampling.ignore_eos);
  EXPECT_TRUE(native.sampling.include_stop_str_in_output);
  EXPECT_FALSE(native.sampling.skip_special_tokens);
  EXPECT_EQ(native.sampling.logprobs, 4);
  engine_.Emit(0, {.finish_reason = FinishReason::kStop});
  EXPECT_TRUE(call->Finish().ok());
}

TEST_F(GrpcServerTest, UnsetFieldsTakeTheDefaults) {
  v1::GenerateRequest request = TextRequest("a");
  request.set_add_special_tokens(false);
  const auto call = StartAdmitted(request);
  const engine::EngineRequest native = engine_.request(0);
  EXPECT_THAT(native.prompt_token_ids, ElementsAre('a'));
  EXPECT_EQ(native.sampling.max_tokens, 63);  // what the context leaves
  EXPECT_EQ(native.sampling.temperature, 1.0F);
  EXPECT_TRUE(native.sampling.skip_special_tokens);
  EXPECT_FALSE(native.sampling.seed.has_value());
  EXPECT_EQ(native.sampling.logprobs, -1);
  engine_.Emit(0, {.finish_reason = FinishReason::kStop});
  EXPECT_TRUE(call->Finish().ok());
}

TEST_F(GrpcServerTest, ChatIsRenderedByTheTemplate) {
  v1::ChatRequest request;
  v1::ChatMessage* message = request.add_messages();
  message->set_role("user");
  message->set_content("hi");
  for (const bool prompt : {true, false}) {
    if (!prompt) request.set_add_generation_prompt(false);
    Call call;
    call.reader = stub_->Chat(&call.context, request);
    const engine::RequestId id = prompt ? 0 : 1;
    ASSERT_TRUE(Eventually([&] { return engine_.num_requests() == id + 1; }));
    EXPECT_EQ(*tokenizer_.Decode(engine_.request(id).prompt_token_ids, false),
              prompt ? "user:hi;A" : "user:hi;");
    engine_.Emit(id, {.text = "yes", .finish_reason = FinishReason::kStop});
    EXPECT_EQ(call.ReadAll().at(0).text(), "yes");
    EXPECT_TRUE(call.Finish().ok());
  }
  request.clear_messages();
  Call call;
  call.reader = stub_->Chat(&call.context, request);
  EXPECT_EQ(call.Finish().error_code(), StatusCode::INVALID_ARGUMENT);
}

TEST_F(GrpcServerTest, BadRequestsAreInvalidArguments) {
  v1::GenerateRequest request;
  EXPECT_EQ(Refusal(request).error_code(), StatusCode::INVALID_ARGUMENT);  // no prompt
  for (const int64_t n : {int64_t{-1}, int64_t{129}, int64_t{1} << 40}) {
    request = TextRequest();
    request.set_n(n);
    const grpc::Status status = Refusal(request);
    EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr(std::to_string(n)));
  }
  EXPECT_THAT(Refusal(TextRequest(std::string(100, 'x'))).error_message(), HasSubstr("101"));
  request = TextRequest();
  request.mutable_sampling()->set_max_tokens(-5);
  EXPECT_THAT(Refusal(request).error_message(), HasSubstr("-5"));
  request = TextRequest();
  request.mutable_sampling()->set_temperature(std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(Refusal(request).error_code(), StatusCode::INVALID_ARGUMENT);
  request.mutable_token_ids();  // an empty list
  EXPECT_EQ(Refusal(request).error_code(), StatusCode::INVALID_ARGUMENT);
  request.mutable_token_ids()->add_ids(-1);
  EXPECT_EQ(Refusal(request).error_code(), StatusCode::INVALID_ARGUMENT);
  request.mutable_token_ids()->set_ids(0, 258);
  EXPECT_THAT(Refusal(request).error_message(), HasSubstr("258"));
}

TEST_F(GrpcServerTest, OtherRefusals) {
  v1::GenerateRequest request = TextRequest();
  request.set_model("other");
  EXPECT_EQ(Refusal(request).error_code(), StatusCode::NOT_FOUND);
  engine_.submit_status = ResourceExhausted("the queue is full");
  EXPECT_EQ(Refusal(TextRequest(), "1000").error_code(), StatusCode::RESOURCE_EXHAUSTED);
  // Longer than a client takes in its headers; cut at a character's end.
  std::string long_message;
  for (int i = 0; i < 5000; ++i) long_message += "\xC3\xA9";
  engine_.submit_status = Internal("x{}", long_message);
  const grpc::Status cut = Refusal(TextRequest());
  EXPECT_EQ(cut.error_code(), StatusCode::INTERNAL);
  EXPECT_EQ(cut.error_message(), "x" + long_message.substr(0, 2046) + "...");
  engine_.SetHealth(Internal("burnt"));
  EXPECT_EQ(Refusal(TextRequest(), "5000").error_code(), StatusCode::UNAVAILABLE);
  engine_.SetHealth(absl::OkStatus());
  gate_.Close();
  EXPECT_EQ(Refusal(TextRequest(), "5000").error_code(), StatusCode::UNAVAILABLE);
}

TEST_F(GrpcServerTest, LargeMessagesAreRefused) {
  Serve({.max_receive_message_bytes = 1 << 16});
  EXPECT_EQ(Refusal(TextRequest(std::string(1 << 17, 'x'))).error_code(),
            StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(GrpcServerTest, TokenizeDetokenizeAndModels) {
  v1::TokenizeRequest tokenize;
  tokenize.set_text("ab");
  v1::TokenizeResponse tokens;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub_->Tokenize(&context, tokenize, &tokens).ok());
    EXPECT_THAT(tokens.token_ids(), ElementsAre(256, 'a', 'b'));
    EXPECT_EQ(tokens.max_model_len(), 64);
  }
  {
    grpc::ClientContext context;
    tokenize.set_add_special_tokens(false);
    tokens.Clear();
    ASSERT_TRUE(stub_->Tokenize(&context, tokenize, &tokens).ok());
    EXPECT_THAT(tokens.token_ids(), ElementsAre('a', 'b'));
  }
  v1::DetokenizeRequest detokenize;
  *detokenize.mutable_token_ids() = tokens.token_ids();
  v1::DetokenizeResponse text;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub_->Detokenize(&context, detokenize, &text).ok());
    EXPECT_EQ(text.text(), "ab");
  }
  {
    grpc::ClientContext context;
    detokenize.add_token_ids(1000);
    EXPECT_EQ(stub_->Detokenize(&context, detokenize, &text).error_code(),
              StatusCode::INVALID_ARGUMENT);
  }
  {
    grpc::ClientContext context;
    tokenize.set_model("other");
    EXPECT_EQ(stub_->Tokenize(&context, tokenize, &tokens).error_code(), StatusCode::NOT_FOUND);
  }
  grpc::ClientContext context;
  v1::ListModelsResponse models;
  ASSERT_TRUE(stub_->ListModels(&context, {}, &models).ok());
  ASSERT_EQ(models.models_size(), 1);
  EXPECT_EQ(models.models(0).id(), "org/fake");
  EXPECT_EQ(models.models(0).created_unix_seconds(), 7);
  EXPECT_EQ(models.models(0).max_model_len(), 64);
  EXPECT_EQ(models.models(0).vocab_size(), 258);
}

// The port is open before there is a service.
TEST_F(GrpcServerTest, ClosedWhileTheModelIsLoaded) {
  ServiceGate loading;
  auto started =
      GrpcServer::Start({.port = 0}, &loading, [&loading] { return loading.Enter().ok(); });
  ASSERT_TRUE(started.ok()) << started.status();
  server_ = *std::move(started);
  channel_ = grpc::CreateChannel("127.0.0.1:" + std::to_string(server_->port()),
                                 grpc::InsecureChannelCredentials());
  stub_ = v1::Nibble::NewStub(channel_);
  const grpc::Status refused = Refusal(TextRequest(), "5000");
  EXPECT_EQ(refused.error_code(), StatusCode::UNAVAILABLE);
  EXPECT_THAT(refused.error_message(), HasSubstr("loading"));
  v1::TokenizeResponse tokens;
  v1::DetokenizeResponse text;
  v1::ListModelsResponse models;
  const auto expect_refused = [](const grpc::ClientContext& context, const grpc::Status& status) {
    EXPECT_EQ(status.error_code(), StatusCode::UNAVAILABLE);
    EXPECT_EQ(context.GetServerTrailingMetadata().count("retry-after-ms"), 1U);
  };
  {
    grpc::ClientContext context;
    expect_refused(context, stub_->Tokenize(&context, {}, &tokens));
  }
  {
    grpc::ClientContext context;
    expect_refused(context, stub_->Detokenize(&context, {}, &text));
  }
  {
    grpc::ClientContext context;
    expect_refused(context, stub_->ListModels(&context, {}, &models));
  }
  ExpectHealth(2);
  loading.Open(service_.get());
  ExpectHealth(1);
  grpc::ClientContext context;
  EXPECT_TRUE(stub_->ListModels(&context, {}, &models).ok());
  server_.reset();  // before its gate
}

TEST_F(GrpcServerTest, HealthFollowsWhatIsReady) {
  ExpectHealth(1);
  EXPECT_EQ(Health("nobody"), -1);
  engine_.SetHealth(Internal("burnt"));
  ExpectHealth(2);
  engine_.SetHealth(absl::OkStatus());
  ExpectHealth(1);
  gate_.Close();
  ExpectHealth(2);
}

TEST_F(GrpcServerTest, APortInUseIsAnError) {
  GrpcServerConfig config;
  config.port = server_->port();
  const auto second = GrpcServer::Start(config, &gate_, [] { return true; });
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(std::to_string(config.port)));
}

TEST_F(GrpcServerTest, StopEndsCallsInFlight) {
  const auto writing = StartAdmitted(TextRequest());
  const auto waiting = StartAdmitted(TextRequest());
  engine_.Emit(0, {.text = std::string(1 << 20, 'x')});
  server_->Stop(/*grace_ms=*/0);
  server_->Stop(0);
  EXPECT_EQ(engine_.num_cancelled(), 2);
  EXPECT_FALSE(writing->Finish().ok());
  EXPECT_FALSE(waiting->Finish().ok());
  server_.reset();
  for (const engine::RequestId id : {0, 1}) {  // the engine ends after the server
    engine_.Emit(id, {.finish_reason = FinishReason::kAbort});
  }
  EXPECT_EQ(Start(TextRequest())->Finish().error_code(), StatusCode::UNAVAILABLE);
}

TEST_F(GrpcServerTest, StopWaitsForCallsInFlight) {
  const auto call = StartAdmitted(TextRequest());
  std::thread stop([this] { server_->Stop(/*grace_ms=*/60'000); });
  // New calls are refused from some moment on.
  EXPECT_TRUE(Eventually([&] {
    Call late;
    late.reader = stub_->Generate(&late.context, v1::GenerateRequest());
    return late.Finish().error_code() == StatusCode::UNAVAILABLE;
  }));
  engine_.Emit(0, {.text = "whole", .finish_reason = FinishReason::kStop});
  const auto responses = call->ReadAll();
  stop.join();
  ASSERT_EQ(responses.size(), 1);
  EXPECT_EQ(responses[0].text(), "whole");
  EXPECT_TRUE(call->Finish().ok());
  EXPECT_EQ(engine_.num_cancelled(), 0);
}

}  // namespace
}  // namespace nibble::server::testing
