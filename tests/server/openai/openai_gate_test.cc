// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The OpenAI API before there is a service behind it: the port is open while the model is loaded.

#include <memory>
#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "server/openai/openai_api.h"
#include "tests/server/admission/fakes.h"
#include "tests/server/http/raw_client.h"

namespace nibble::server {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class OpenAiGateTest : public ::testing::Test {
 protected:
  OpenAiGateTest() {
    api_.Register(server_.get());
    const absl::Status started = server_->Start();
    EXPECT_TRUE(started.ok()) << started;
  }
  ~OpenAiGateTest() override { server_->Stop(); }

  // {head, body}
  std::pair<std::string, std::string> Get(const std::string& path) {
    return Ask("GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n");
  }
  std::pair<std::string, std::string> Post(const std::string& path) {
    return Ask("POST " + path + " HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}");
  }

  testing::FakeEngine engine_;
  testing::FakeTokenizer tokenizer_;
  ServiceGate gate_;
  OpenAiApi api_{&gate_,
                 {.model_name = "org/fake", .version = "1.2.3", .metrics = [] { return "x 1\n"; }}};
  std::unique_ptr<HttpServer> server_ = *HttpServer::Create({.port = 0});

 private:
  std::pair<std::string, std::string> Ask(const std::string& request) {
    testing::RawClient client(server_->port());
    client.Send(request);
    return client.ReadResponse();
  }
};

TEST_F(OpenAiGateTest, ClosedWhileTheModelIsLoaded) {
  for (const auto& [head, body] :
       {Get("/v1/models"), Get("/v1/models/org/fake"), Get("/v1/models/other"),
        Post("/v1/chat/completions"), Post("/v1/completions"), Post("/tokenize"),
        Post("/detokenize")}) {
    EXPECT_THAT(head, StartsWith("HTTP/1.1 503"));
    EXPECT_THAT(head, HasSubstr("Retry-After: "));
    EXPECT_THAT(body, HasSubstr("service_unavailable_error"));
    EXPECT_THAT(body, HasSubstr("loading"));
  }
  EXPECT_THAT(Get("/version").first, StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(Get("/metrics").first, StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(Get("/nothing").first, StartsWith("HTTP/1.1 404"));
}

TEST_F(OpenAiGateTest, OpenOnceThereIsAServiceUntilItDrains) {
  GenerationService::Parts parts;
  parts.model = {.name = "org/fake", .max_model_len = 64, .vocab_size = 258};
  parts.engine = &engine_;
  parts.tokenizer = &tokenizer_;
  GenerationService service(std::move(parts));
  gate_.Open(&service);
  EXPECT_THAT(Get("/v1/models/org/fake").first, StartsWith("HTTP/1.1 200"));
  gate_.Close();
  const auto [head, body] = Get("/v1/models");
  EXPECT_THAT(head, StartsWith("HTTP/1.1 503"));
  EXPECT_THAT(body, HasSubstr("shutting down"));
  EXPECT_THAT(Get("/metrics").first, StartsWith("HTTP/1.1 200"));
  server_->Stop();  // before the service
}

}  // namespace
}  // namespace nibble::server
