// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A gRPC server over an engine that does what the test says, and a client of it.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"

#include "nibble/v1/nibble.grpc.pb.h"
#include "server/grpc/grpc_server.h"
#include "tests/server/admission/fakes.h"
#include "tests/server/http/raw_client.h"

namespace nibble::server::testing {

class GrpcTest : public ::testing::Test {
 protected:
  GrpcTest() {
    GenerationService::Parts parts;
    parts.model = {
        .name = "org/fake", .created_unix_seconds = 7, .max_model_len = 64, .vocab_size = 258};
    parts.engine = &engine_;
    parts.tokenizer = &tokenizer_;
    auto parsed = ChatTemplate::Parse(
        "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
        "{% if add_generation_prompt %}A{% endif %}");
    parts.chat_template = std::move(parsed).value();
    service_ = std::make_unique<GenerationService>(std::move(parts));
    gate_.Open(service_.get());
    Serve({});
  }

  void Serve(GrpcServerConfig config) {
    config.port = 0;
    server_.reset();
    auto started = GrpcServer::Start(
        config, &gate_, [this] { return engine_.Health().ok() && gate_.Enter().ok(); });
    ASSERT_TRUE(started.ok()) << started.status();
    server_ = std::move(started).value();
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    // A window that does not grow: what a client does not read stays at the server.
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    channel_ = grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(server_->port()),
                                         grpc::InsecureChannelCredentials(), arguments);
    stub_ = v1::Nibble::NewStub(channel_);
  }

  static v1::GenerateRequest TextRequest(const std::string& text = "hi") {
    v1::GenerateRequest request;
    request.set_text(text);
    return request;
  }

  // One streaming call.
  struct Call {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader;

    std::vector<v1::GenerateResponse> ReadAll() {
      std::vector<v1::GenerateResponse> responses;
      for (v1::GenerateResponse response; reader->Read(&response);) responses.push_back(response);
      return responses;
    }
    grpc::Status Finish() {
      ReadAll();
      return reader->Finish();
    }
    // "" when there is none.
    std::string RetryAfterMs() const {
      const auto& metadata = context.GetServerTrailingMetadata();
      const auto entry = metadata.find("retry-after-ms");
      return entry == metadata.end() ? "" : std::string(entry->second.data(), entry->second.size());
    }
  };

  std::unique_ptr<Call> Start(const v1::GenerateRequest& request) {
    auto call = std::make_unique<Call>();
    call->reader = stub_->Generate(&call->context, request);
    return call;
  }
  // Also waits until the request is at the engine.
  std::unique_ptr<Call> StartAdmitted(const v1::GenerateRequest& request) {
    const size_t num_choices = request.n() == 0 ? 1 : static_cast<size_t>(request.n());
    const size_t expected = engine_.num_requests() + num_choices;
    auto call = Start(request);
    EXPECT_TRUE(Eventually([&] { return engine_.num_requests() >= expected; }));
    return call;
  }

  FakeEngine engine_;
  FakeTokenizer tokenizer_;
  std::unique_ptr<GenerationService> service_;
  ServiceGate gate_;
  std::unique_ptr<GrpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Nibble::Stub> stub_;
};

}  // namespace nibble::server::testing
