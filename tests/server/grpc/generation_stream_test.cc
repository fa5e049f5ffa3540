// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/grpc/generation_stream.h"

#include <atomic>
#include <chrono>
#include <map>
#include <thread>

#include "gmock/gmock.h"

#include "tests/server/grpc/grpc_fixture.h"

namespace nibble::server::testing {
namespace {

using engine::FinishReason;
using engine::RequestOutput;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class GenerationStreamTest : public GrpcTest {
 protected:
  void WaitForCancelled(size_t count) {
    EXPECT_TRUE(Eventually([&] { return engine_.num_cancelled() >= count; }))
        << engine_.num_cancelled();
  }
  // Leaves a write outstanding until the client reads: it is larger than what HTTP/2 lets through.
  // (The write before it may still be ending when this returns.)
  void BlockWriting(Call* call) {
    v1::GenerateResponse response;
    engine_.Emit(0, {.text = "first"});
    ASSERT_TRUE(call->reader->Read(&response));  // the stream has begun
    engine_.Emit(0, {.text = std::string(1 << 20, 'x')});
  }
};

TEST_F(GenerationStreamTest, DeltasComeAsTheyAreMadeAndUsageComesLast) {
  const auto call = StartAdmitted(TextRequest());
  EXPECT_THAT(engine_.request(0).prompt_token_ids, ElementsAre(256, 'h', 'i'));
  v1::GenerateResponse response;
  for (const std::string text : {"a", "bc"}) {
    engine_.Emit(0, {.text = text, .token_ids = {1, 2}});
    ASSERT_TRUE(call->reader->Read(&response));
    EXPECT_EQ(response.text(), text);
    EXPECT_THAT(response.token_ids(), ElementsAre(1, 2));
    EXPECT_EQ(response.finish_reason(), v1::FINISH_REASON_UNSPECIFIED);
    EXPECT_FALSE(response.has_usage());
  }
  engine_.Emit(0, {.text = "d",
                   .token_ids = {3},
                   .finish_reason = FinishReason::kLength,
                   .num_prompt_tokens = 3,
                   .num_cached_tokens = 2,
                   .num_generated_tokens = 5});
  ASSERT_TRUE(call->reader->Read(&response));
  EXPECT_EQ(response.text(), "d");
  EXPECT_EQ(response.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(response.usage().prompt_tokens(), 3);
  EXPECT_EQ(response.usage().cached_prompt_tokens(), 2);
  EXPECT_EQ(response.usage().completion_tokens(), 5);
  EXPECT_FALSE(call->reader->Read(&response));
  EXPECT_TRUE(call->reader->Finish().ok());
  EXPECT_EQ(engine_.num_cancelled(), 0);
}

TEST_F(GenerationStreamTest, ChoicesEndOneByOneAndThePromptCountsOnce) {
  v1::GenerateRequest request = TextRequest();
  request.set_n(3);
  request.mutable_sampling()->set_seed(5);
  const auto call = StartAdmitted(request);
  EXPECT_EQ(engine_.request(2).sampling.seed, 7);
  v1::GenerateResponse response;
  for (const int index : {1, 0, 2}) {
    engine_.Emit(static_cast<engine::RequestId>(index), {.text = std::to_string(index),
                                                         .finish_reason = FinishReason::kStop,
                                                         .num_cached_tokens = 10 + index,
                                                         .num_generated_tokens = 4});
    ASSERT_TRUE(call->reader->Read(&response));
    EXPECT_EQ(response.output_index(), index);
    EXPECT_EQ(response.text(), std::to_string(index));
    EXPECT_EQ(response.has_usage(), index == 2);
  }
  EXPECT_EQ(response.usage().prompt_tokens(), 3);
  EXPECT_EQ(response.usage().cached_prompt_tokens(), 10);
  EXPECT_EQ(response.usage().completion_tokens(), 12);
  EXPECT_TRUE(call->Finish().ok());
}

TEST_F(GenerationStreamTest, LogprobsAndStopReasons) {
  auto call = StartAdmitted(TextRequest());
  RequestOutput output{.text = "x", .token_ids = {'x'}, .finish_reason = FinishReason::kStop};
  output.logprobs = {{.sampled = {'x', -0.5F, 2}, .top = {{200, -0.25F, 1}, {'x', -0.5F, 2}}}};
  output.stop_reason = std::string("END");
  engine_.Emit(0, output);
  std::vector<v1::GenerateResponse> responses = call->ReadAll();
  ASSERT_EQ(responses.size(), 1);
  EXPECT_EQ(responses[0].stop_string(), "END");
  ASSERT_EQ(responses[0].logprobs_size(), 1);
  const v1::TokenLogprobs& logprobs = responses[0].logprobs(0);
  EXPECT_EQ(logprobs.sampled().token_id(), 'x');
  EXPECT_EQ(logprobs.sampled().rank(), 2);
  EXPECT_EQ(logprobs.sampled().token_bytes(), "x");
  ASSERT_EQ(logprobs.top_size(), 2);
  EXPECT_EQ(logprobs.top(0).token_bytes(), "\xC8");
  EXPECT_EQ(logprobs.top(0).logprob(), -0.25F);
  EXPECT_TRUE(call->Finish().ok());

  call = StartAdmitted(TextRequest());
  engine_.Emit(1, {.finish_reason = FinishReason::kStop, .stop_reason = int32_t{42}});
  responses = call->ReadAll();
  ASSERT_EQ(responses.size(), 1);
  EXPECT_EQ(responses[0].stop_reason_case(), v1::GenerateResponse::kStopTokenId);
  EXPECT_EQ(responses[0].stop_token_id(), 42);
  EXPECT_EQ(responses[0].finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_TRUE(call->Finish().ok());
}

TEST_F(GenerationStreamTest, WhatASlowClientHasNotReadIsMerged) {
  constexpr int kDeltas = 200;
  v1::GenerateRequest request = TextRequest();
  request.set_n(3);
  const auto call = StartAdmitted(request);
  BlockWriting(call.get());
  std::string expected;
  for (int i = 0; i < kDeltas; ++i) {
    const std::string text = std::to_string(i) + " ";
    expected += text;
    for (const engine::RequestId id : {0, 1, 2}) {
      engine_.Emit(id, {.text = text, .token_ids = {i}});
    }
  }
  for (const engine::RequestId id : {0, 1, 2}) {
    engine_.Emit(id, {.finish_reason = FinishReason::kStop});
  }
  const std::vector<v1::GenerateResponse> responses = call->ReadAll();
  // One a choice, and what went out before the large message blocked the way.
  EXPECT_LT(responses.size(), 20);
  std::map<int, std::string> texts;
  for (const v1::GenerateResponse& response : responses) {
    texts[response.output_index()] += response.text();
    EXPECT_EQ(response.has_usage(), &response == &responses.back());
  }
  EXPECT_EQ(texts[0].substr(0, 1 << 20), std::string(1 << 20, 'x'));
  EXPECT_EQ(texts[0].substr(1 << 20), expected);
  EXPECT_EQ(texts[1], expected);
  EXPECT_EQ(texts[2], expected);
  EXPECT_TRUE(call->Finish().ok());
}

TEST_F(GenerationStreamTest, AClientThatLeavesTooMuchUnreadIsCutOff) {
  constexpr int kChoices = 8;
  Serve({.max_stream_pending_bytes = 2'000'000});
  v1::GenerateRequest request = TextRequest();
  request.set_n(kChoices);
  const auto call = StartAdmitted(request);
  // No choice alone comes near the bound.
  int num_pieces = 0;
  while (engine_.num_cancelled() == 0 && num_pieces < 8 * kChoices) {
    engine_.Emit(static_cast<engine::RequestId>(num_pieces % kChoices),
                 {.text = std::string(100'000, 'x')});
    ++num_pieces;
  }
  EXPECT_GT(num_pieces, 20);
  EXPECT_EQ(engine_.num_cancelled(), kChoices);
  engine_.Emit(0, {.text = "late"});
  for (engine::RequestId id = 0; id < kChoices; ++id) {
    engine_.Emit(id, {.finish_reason = FinishReason::kAbort});
  }
  const grpc::Status status = call->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("2000000"));
  EXPECT_EQ(call->RetryAfterMs(), "");
}

TEST_F(GenerationStreamTest, AFailureEndsTheStreamAndTheOtherChoices) {
  v1::GenerateRequest request = TextRequest();
  request.set_n(2);
  auto call = StartAdmitted(request);
  v1::GenerateResponse response;
  engine_.Emit(0, {.text = "a"});
  ASSERT_TRUE(call->reader->Read(&response));
  engine_.Emit(1, {.text = "b", .finish_reason = FinishReason::kError, .error = Internal("burnt")});
  for (const v1::GenerateResponse& late : call->ReadAll()) {
    EXPECT_EQ(late.finish_reason(), v1::FINISH_REASON_UNSPECIFIED);
  }
  grpc::Status status = call->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_EQ(status.error_message(), "burnt");
  EXPECT_EQ(call->RetryAfterMs(), "");
  EXPECT_EQ(engine_.num_cancelled(), 2);

  // An error without a word is one nevertheless.
  call = StartAdmitted(TextRequest());
  engine_.Emit(2, {.finish_reason = FinishReason::kError});
  EXPECT_EQ(call->Finish().error_code(), grpc::StatusCode::INTERNAL);
}

TEST_F(GenerationStreamTest, AnAbortOfTheEngineIsUnavailable) {
  const auto call = StartAdmitted(TextRequest());
  engine_.Emit(0, {.finish_reason = FinishReason::kAbort});
  const grpc::Status status = call->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(call->RetryAfterMs(), "5000");
}

TEST_F(GenerationStreamTest, CancellingFreesTheRequest) {
  v1::GenerateRequest request = TextRequest();
  request.set_n(2);
  const auto call = StartAdmitted(request);
  call->context.TryCancel();
  WaitForCancelled(2);
  engine_.Emit(0, {.text = "late"});
  engine_.Emit(0, {.finish_reason = FinishReason::kAbort});
  EXPECT_EQ(call->Finish().error_code(), grpc::StatusCode::CANCELLED);
  engine_.Emit(1, {.finish_reason = FinishReason::kAbort});  // long after the call
}

TEST_F(GenerationStreamTest, CancellingWhileAWriteIsOutstanding) {
  const auto call = StartAdmitted(TextRequest());
  BlockWriting(call.get());
  engine_.Emit(0, {.text = "waiting"});
  call->context.TryCancel();
  WaitForCancelled(1);
  EXPECT_EQ(call->Finish().error_code(), grpc::StatusCode::CANCELLED);
  engine_.Emit(0, {.finish_reason = FinishReason::kAbort});
}

TEST_F(GenerationStreamTest, ADeadlineFreesTheRequest) {
  // Longer, should it be over before the call arrived.
  for (std::chrono::milliseconds timeout(200); engine_.num_requests() == 0; timeout *= 4) {
    Call call;
    call.context.set_deadline(std::chrono::system_clock::now() + timeout);
    call.reader = stub_->Generate(&call.context, TextRequest());
    EXPECT_EQ(call.Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  }
  WaitForCancelled(1);
}

// HTTP/2 by hand, because the client library cannot vanish without a word.
std::string Frame(char type, char flags, char stream, const std::string& payload) {
  const size_t size = payload.size();
  std::string frame = {static_cast<char>(size >> 16),
                       static_cast<char>(size >> 8),
                       static_cast<char>(size),
                       type,
                       flags,
                       0,
                       0,
                       0,
                       stream};
  return frame + payload;
}

std::string PlainHeader(const std::string& name, const std::string& value) {
  return std::string(1, '\0') + static_cast<char>(name.size()) + name +
         static_cast<char>(value.size()) + value;
}

TEST_F(GenerationStreamTest, AClientThatVanishesFreesTheRequest) {
  const std::string message = TextRequest().SerializeAsString();
  RawClient client(server_->port());
  client.Send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + Frame(4, 0, 0, ""));
  client.Send(Frame(1, 4, 1,
                    PlainHeader(":method", "POST") + PlainHeader(":scheme", "http") +
                        PlainHeader(":path", "/nibble.v1.Nibble/Generate") +
                        PlainHeader(":authority", "x") + PlainHeader("te", "trailers") +
                        PlainHeader("content-type", "application/grpc")));
  client.Send(Frame(0, 1, 1, std::string(4, '\0') + static_cast<char>(message.size()) + message));
  ASSERT_TRUE(Eventually([&] { return engine_.num_requests() == 1; }));
  engine_.Emit(0, {.text = "x"});
  EXPECT_EQ(engine_.num_cancelled(), 0);
  client.Reset();
  WaitForCancelled(1);
  engine_.Emit(0, {.finish_reason = FinishReason::kAbort});
}

// The engine writes, clients read, cancel and run out of time, all at once; for the sanitizers.
TEST_F(GenerationStreamTest, ManyCallsEndInEveryWay) {
  constexpr int kThreads = 4;
  constexpr int kCallsPerThread = 25;
  std::atomic<bool> stop{false};
  std::thread engine_thread([&] {
    for (engine::RequestId first = 0; !stop.load();) {
      const size_t count = engine_.num_requests();
      for (engine::RequestId id = first; id < count; ++id) {
        for (int i = 0; i < 20; ++i) engine_.Emit(id, {.text = "text", .token_ids = {i}});
        engine_.Emit(id,
                     {.finish_reason = id % 5 == 0 ? FinishReason::kAbort : FinishReason::kLength,
                      .num_generated_tokens = 20});
      }
      first = count;
    }
  });
  std::atomic<int> num_ok{0};
  std::vector<std::thread> clients;
  for (int thread = 0; thread < kThreads; ++thread) {
    clients.emplace_back([&, thread] {
      for (int i = 0; i < kCallsPerThread; ++i) {
        Call call;
        if (i % 4 == 1) {
          call.context.set_deadline(std::chrono::system_clock::now() +
                                    std::chrono::milliseconds(thread));
        }
        call.reader = stub_->Generate(&call.context, TextRequest());
        v1::GenerateResponse response;
        if (i % 4 == 2) call.reader->Read(&response);
        if (i % 4 >= 2) call.context.TryCancel();
        if (call.Finish().ok()) ++num_ok;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  stop.store(true);
  engine_thread.join();
  EXPECT_GT(num_ok.load(), 0);
}

}  // namespace
}  // namespace nibble::server::testing
