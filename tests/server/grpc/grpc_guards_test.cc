// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Keys, TLS, limits, names and log lines of calls.

#include <map>
#include <mutex>
#include <sstream>

#include "gmock/gmock.h"
#include "grpcpp/generic/generic_stub.h"

#include "base/json.h"
#include "tests/server/grpc/grpc_fixture.h"
#include "tests/testing/tls_files.h"

namespace nibble::server {
namespace {

using nibble::testing::Replace;
using nibble::testing::Slurp;
using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;

class GrpcGuardsTest : public testing::GrpcTest {
 protected:
  // Of one call of ListModels.
  grpc::Status Ask(grpc::Channel* channel, const std::string& authorization,
                   std::string* request_id = nullptr) {
    const auto stub = v1::Nibble::NewStub(std::shared_ptr<grpc::Channel>(channel, [](auto*) {}));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    if (!authorization.empty()) context.AddMetadata("authorization", authorization);
    if (request_id != nullptr && !request_id->empty()) {
      context.AddMetadata("x-request-id", *request_id);
    }
    v1::ListModelsResponse response;
    const grpc::Status status = stub->ListModels(&context, {}, &response);
    if (request_id != nullptr) {
      const auto& metadata = context.GetServerInitialMetadata();
      const auto found = metadata.find("x-request-id");
      *request_id =
          found == metadata.end() ? "" : std::string(found->second.data(), found->second.size());
    }
    return status;
  }
  // A call of any method, by its path.
  grpc::StatusCode CodeOf(const std::string& path, const std::string& authorization,
                          grpc_compression_algorithm compression = GRPC_COMPRESS_NONE) {
    grpc::GenericStub stub(channel_);
    grpc::ClientContext context;
    context.set_compression_algorithm(compression);
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    if (!authorization.empty()) context.AddMetadata("authorization", authorization);
    grpc::CompletionQueue queue;
    grpc::ByteBuffer request;
    {
      const grpc::Slice empty("", 0);
      request = grpc::ByteBuffer(&empty, 1);
    }
    const auto call = stub.PrepareUnaryCall(&context, path, request, &queue);
    call->StartCall();
    grpc::ByteBuffer response;
    grpc::Status status;
    call->Finish(&response, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    queue.Next(&tag, &ok);
    return status.error_code();
  }
  void ServeKeys() {
    Serve({.api_keys = *ApiKeys::Create({.keys = {"key"}}), .request_log = log_});
  }
  void ServeTls(ClientCertificates clients) {
    auto source = TlsSource::Create(
        {.cert_file = files_.cert(),
         .key_file = files_.key(),
         .ca_file = clients == ClientCertificates::kNone
                        ? std::string()
                        : Replace(files_.folder, "clients.pem", files_.authority.cert()),
         .clients = clients},
        std::chrono::milliseconds(5));
    ASSERT_TRUE(source.ok()) << source.status();
    source_ = *std::move(source);
    Serve({.tls = source_});
  }
  std::shared_ptr<grpc::Channel> Connect(const comm::TestAuthority& trusted,
                                         const comm::Certificate& own = {}) {
    grpc::SslCredentialsOptions options;
    options.pem_root_certs = trusted.cert();
    options.pem_cert_chain = own.cert;
    options.pem_private_key = own.key;
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(server_->port()),
                                     grpc::SslCredentials(options), arguments);
  }
  bool Serves(const std::shared_ptr<grpc::Channel>& channel) { return Ask(channel.get(), "").ok(); }

  nibble::testing::TlsFiles files_;
  std::shared_ptr<TlsSource> source_;
  std::shared_ptr<RequestLog> log_;
};

TEST_F(GrpcGuardsTest, EveryMethodButHealthNeedsAKey) {
  ServeKeys();
  constexpr const char* kHealth = "/grpc.health.v1.Health/Check";
  constexpr const char* kReflection =
      "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
  const auto kRefused = grpc::StatusCode::UNAUTHENTICATED;
  for (const char* method : {"Generate", "Chat", "Tokenize", "Detokenize", "ListModels", "None"}) {
    EXPECT_EQ(CodeOf(std::string("/nibble.v1.Nibble/") + method, ""), kRefused) << method;
  }
  EXPECT_EQ(CodeOf(kReflection, ""), kRefused);
  EXPECT_EQ(CodeOf("/other/Method", ""), kRefused);
  EXPECT_EQ(CodeOf("/grpc.health.v1.HealthX/Check", ""), kRefused);
  EXPECT_EQ(CodeOf(kHealth, ""), grpc::StatusCode::OK);
  EXPECT_EQ(CodeOf("/nibble.v1.Nibble/ListModels", "Bearer kez"), kRefused);
  EXPECT_EQ(CodeOf("/nibble.v1.Nibble/ListModels", "Bearer key"), grpc::StatusCode::OK);
  EXPECT_EQ(CodeOf("/nibble.v1.Nibble/ListModels", "Basic dTprZXk="), grpc::StatusCode::OK);
  EXPECT_EQ(CodeOf("/other/Method", "Bearer key"), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_NE(CodeOf(kReflection, "Bearer key"), kRefused);
  EXPECT_THAT(Ask(channel_.get(), "Bearer wrong-secret").error_message(),
              Not(HasSubstr("wrong-secret")));
}

TEST_F(GrpcGuardsTest, WhatIsRefusedIsCounted) {
  std::mutex mutex;
  std::map<std::string, int> counted;
  Serve({.api_keys = *ApiKeys::Create({.keys = {"key"}}),
         .observer = [&](std::string_view method, std::string_view code, double seconds) {
           EXPECT_GE(seconds, 0.0);
           const std::lock_guard lock(mutex);
           ++counted[std::string(method) + " " + std::string(code)];
         }});
  for (const char* path :
       {"/nibble.v1.Nibble/Chat", "/nibble.v1.Nibble/ListModels", "/nibble.v1.Nibble/Made-up",
        "/nibble.v1.Nibble", "/", "/other/Chat", "/nibble.v1.NibbleX/Chat"}) {
    CodeOf(path, "Bearer kez");
  }
  CodeOf("/nibble.v1.Nibble/ListModels", "");
  CodeOf("/nibble.v1.Nibble/ListModels", "Bearer key");
  channel_.reset();
  const std::lock_guard lock(mutex);
  const std::map<std::string, int> expected = {{"Chat UNAUTHENTICATED", 1},
                                               {"ListModels OK", 1},
                                               {"ListModels UNAUTHENTICATED", 2},
                                               {"other UNAUTHENTICATED", 5}};
  EXPECT_EQ(counted, expected);
}

// A few bytes would become as many as there is memory, before anybody looks at their number.
TEST_F(GrpcGuardsTest, MessagesAreNotCompressed) {
  ServeKeys();
  for (const auto compression : {GRPC_COMPRESS_GZIP, GRPC_COMPRESS_DEFLATE}) {
    EXPECT_EQ(CodeOf("/nibble.v1.Nibble/ListModels", "Bearer key", compression),
              grpc::StatusCode::UNIMPLEMENTED);
    EXPECT_EQ(CodeOf("/grpc.health.v1.Health/Check", "", compression),
              grpc::StatusCode::UNIMPLEMENTED);
  }
  EXPECT_EQ(CodeOf("/grpc.health.v1.Health/Check", ""), grpc::StatusCode::OK);
}

TEST_F(GrpcGuardsTest, CallsHaveNames) {
  Serve({});
  std::string id = "my-id";
  EXPECT_TRUE(Ask(channel_.get(), "", &id).ok());
  EXPECT_EQ(id, "my-id");
  id.clear();
  EXPECT_TRUE(Ask(channel_.get(), "", &id).ok());
  EXPECT_EQ(id.size(), 32U);
}

TEST_F(GrpcGuardsTest, EveryOutcomeLeavesALine) {
  const nibble::testing::TempDir folder;
  log_ = *RequestLog::Open({.path = folder.File("log")});
  ServeKeys();
  CodeOf("/nibble.v1.Nibble/Generate", "");
  CodeOf("/nibble.v1.Nibble/ListModels", "Bearer key");
  const auto start = [&](const std::string& text) {
    auto call = std::make_unique<Call>();
    call->context.AddMetadata("authorization", "Bearer key");
    call->context.AddMetadata("x-request-id", text);
    call->reader = stub_->Generate(&call->context, TextRequest("private prompt"));
    return call;
  };
  const auto whole = start("whole");
  ASSERT_TRUE(testing::Eventually([&] { return engine_.num_requests() == 1; }));
  engine::RequestOutput output;
  output.token_ids = {1, 2};
  output.finish_reason = engine::FinishReason::kLength;
  output.queue_seconds = 0.5;
  engine_.Emit(0, output);
  EXPECT_TRUE(whole->Finish().ok());
  const auto cancelled = start("cancelled");
  ASSERT_TRUE(testing::Eventually([&] { return engine_.num_requests() == 2; }));
  cancelled->context.TryCancel();
  cancelled->Finish();
  EXPECT_TRUE(testing::Eventually([&] { return engine_.num_cancelled() == 1; }));
  engine_.Emit(1, output);  // lets the stream go
  server_.reset();
  log_.reset();
  // gRPC's last call of a stream comes on a thread of its own; the server waits for it.
  std::map<std::string, json> lines;
  std::istringstream text(Slurp(folder.File("log")));
  for (std::string line; std::getline(text, line);) {
    const json parsed = *ParseJson(line);
    lines[parsed["route"].get<std::string>() + parsed["code"].get<std::string>()] = parsed;
  }
  EXPECT_TRUE(lines.contains("/nibble.v1.Nibble/GenerateUNAUTHENTICATED"));
  EXPECT_TRUE(lines.contains("/nibble.v1.Nibble/ListModelsOK"));
  EXPECT_TRUE(lines.contains("/nibble.v1.Nibble/GenerateCANCELLED"));
  const json& line = lines["/nibble.v1.Nibble/GenerateOK"];
  EXPECT_EQ(line["request_id"], "whole");
  EXPECT_EQ(line["output_tokens"], 2);
  EXPECT_EQ(line["finish_reasons"], json::array({"length"}));
  EXPECT_EQ(line["queue_seconds"], 0.5);
  EXPECT_THAT(line["peer"].get<std::string>(), HasSubstr("127.0.0.1:"));
  EXPECT_THAT(Slurp(folder.File("log")), Not(HasSubstr("private")));
}

TEST_F(GrpcGuardsTest, TlsWithClientCertificates) {
  const comm::TestAuthority stranger;
  ServeTls(ClientCertificates::kNone);
  EXPECT_TRUE(Serves(Connect(files_.authority)));
  EXPECT_FALSE(Serves(Connect(stranger)));
  EXPECT_FALSE(Serves(channel_));  // plain
  ServeTls(ClientCertificates::kRequired);
  EXPECT_FALSE(Serves(Connect(files_.authority)));
  EXPECT_FALSE(Serves(Connect(files_.authority, stranger.Sign())));
  EXPECT_TRUE(Serves(Connect(files_.authority, files_.authority.Sign())));
  ServeTls(ClientCertificates::kOptional);
  EXPECT_TRUE(Serves(Connect(files_.authority)));
  EXPECT_FALSE(Serves(Connect(files_.authority, stranger.Sign())));
  EXPECT_TRUE(Serves(Connect(files_.authority, files_.authority.Sign())));
}

TEST_F(GrpcGuardsTest, NewCertificatesAreForNewConnections) {
  ServeTls(ClientCertificates::kNone);
  const auto before = Connect(files_.authority);
  EXPECT_TRUE(Serves(before));
  // Signed by another authority, so that a client can tell.
  const comm::TestAuthority next;
  const comm::Certificate made = next.Sign();
  Replace(files_.folder, "cert.pem", made.cert);
  Replace(files_.folder, "key.pem", made.key);
  ASSERT_TRUE(testing::Eventually([&] { return source_->current().generation == 2; }));
  EXPECT_TRUE(Serves(Connect(next)));
  EXPECT_FALSE(Serves(Connect(files_.authority)));
  EXPECT_TRUE(Serves(before));
}

TEST_F(GrpcGuardsTest, MetadataHasALimit) {
  Serve({.max_metadata_bytes = 4096});
  EXPECT_TRUE(Ask(channel_.get(), std::string(1000, 'x')).ok());
  EXPECT_EQ(Ask(channel_.get(), std::string(8000, 'x')).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
}

}  // namespace
}  // namespace nibble::server
