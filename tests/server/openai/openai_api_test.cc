// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The OpenAI API over real sockets, with an engine that does what the test says.

#include "server/openai/openai_api.h"

#include <atomic>
#include <set>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/json.h"
#include "tests/server/admission/fakes.h"
#include "tests/server/http/raw_client.h"

namespace nibble::server {
namespace {

using engine::FinishReason;
using nlohmann::json;
using testing::Eventually;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::RawClient;
using ::testing::StartsWith;

// Stands still in texts that start with "wait" until it is told to go on.
class WaitingTokenizer final : public engine::Tokenizer {
 public:
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              bool add_special_tokens) const override {
    if (text.substr(0, 4) == "wait") {
      num_waiting.fetch_add(1);
      while (!go_on.load()) ::usleep(1000);
    }
    return fake_.Encode(text, add_special_tokens);
  }
  absl::StatusOr<std::string> Decode(std::span<const int32_t> ids, bool skip) const override {
    return fake_.Decode(ids, skip);
  }
  std::string TokenBytes(int32_t id) const override { return fake_.TokenBytes(id); }
  bool IsSpecial(int32_t id) const override { return fake_.IsSpecial(id); }
  std::optional<int32_t> TokenToId(std::string_view token) const override {
    return fake_.TokenToId(token);
  }
  std::string IdToToken(int32_t id) const override { return fake_.IdToToken(id); }
  int64_t vocab_size() const override { return fake_.vocab_size(); }

  mutable std::atomic<int> num_waiting{0};
  std::atomic<bool> go_on{false};

 private:
  testing::FakeTokenizer fake_;
};

class OpenAiApiTest : public ::testing::Test {
 protected:
  OpenAiApiTest() {
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
    api_ = std::make_unique<OpenAiApi>(&gate_, OpenAiConfig{.model_name = "org/fake",
                                                            .version = "1.2.3",
                                                            .system_fingerprint = "fp",
                                                            .metrics = [] { return "vllm:x 1\n"; },
                                                            .max_queued_bytes = 100'000,
                                                            .num_preparation_threads = 1,
                                                            .max_waiting_preparations = 1});
    server_ = *HttpServer::Create({.port = 0, .max_body_bytes = 1 << 20});
    api_->Register(server_.get());
    const absl::Status status = server_->Start();
    EXPECT_TRUE(status.ok()) << status;
  }
  ~OpenAiApiTest() override { server_->Stop(); }

  static std::string Post(const std::string& path, const std::string& body,
                          const std::string& headers = "") {
    return "POST " + path + " HTTP/1.1\r\nHost: x\r\n" + headers +
           "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
  }
  std::pair<std::string, json> Ask(const std::string& request) {
    RawClient client(server_->port());
    client.Send(request);
    return Response(&client);
  }
  static std::pair<std::string, json> Response(RawClient* client) {
    auto [head, body] = client->ReadResponse();
    auto parsed = ParseJson(body);
    EXPECT_TRUE(parsed.ok()) << body;
    return {head, parsed.ok() ? *parsed : json()};
  }
  std::pair<std::string, json> Get(const std::string& path) {
    return Ask("GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n");
  }
  void WaitForRequests(size_t count) {
    ASSERT_TRUE(Eventually([&] { return engine_.num_requests() >= count; }));
  }
  void ExpectError(const std::pair<std::string, json>& response, const std::string& status,
                   const std::string& type, const json& param) {
    EXPECT_THAT(response.first, StartsWith("HTTP/1.1 " + status));
    const json& error = response.second["error"];
    EXPECT_EQ(error["type"], type) << error;
    EXPECT_EQ(error["param"], param) << error;
    EXPECT_TRUE(error["message"].is_string());
    EXPECT_TRUE(error.contains("code"));
  }
  // The JSON of each "data: " event; the last must be [DONE].
  static std::vector<json> Events(const std::string& body) {
    std::vector<json> events;
    size_t at = 0;
    while (at < body.size()) {
      const size_t end = body.find("\n\n", at);
      const std::string line = body.substr(at, end - at);
      EXPECT_THAT(line, StartsWith("data: "));
      at = end == std::string::npos ? body.size() : end + 2;
      if (line == "data: [DONE]") {
        EXPECT_EQ(at, body.size());
        return events;
      }
      auto parsed = ParseJson(line.substr(6));
      EXPECT_TRUE(parsed.ok()) << line;
      if (parsed.ok()) events.push_back(*parsed);
    }
    ADD_FAILURE() << "no [DONE] in " << body;
    return events;
  }
  static std::string ChatBody(const std::string& more = "") {
    return R"({"model":"org/fake","messages":[{"role":"user","content":"hi"}])" + more + "}";
  }

  testing::FakeEngine engine_;
  WaitingTokenizer tokenizer_;
  std::unique_ptr<GenerationService> service_;
  ServiceGate gate_;
  std::unique_ptr<OpenAiApi> api_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(OpenAiApiTest, SmallRoutes) {
  EXPECT_THAT(Get("/version").first, StartsWith("HTTP/1.1 200"));
  EXPECT_EQ(Get("/version").second, json({{"version", "1.2.3"}}));
  const json model = {{"id", "org/fake"},    {"object", "model"},
                      {"created", 7},        {"owned_by", "nibble"},
                      {"max_model_len", 64}, {"vocab_size", service_->model().vocab_size}};
  EXPECT_EQ(Get("/v1/models").second, json({{"object", "list"}, {"data", {model}}}));
  EXPECT_EQ(Get("/v1/models/org/fake").second, model);
  EXPECT_EQ(Get("/v1/models/org%2Ffake").second, model);
  const auto unknown = Get("/v1/models/none/such");
  ExpectError(unknown, "404", "invalid_request_error", "model");
  EXPECT_EQ(unknown.second["error"]["code"], "model_not_found");
  EXPECT_THAT(unknown.second["error"]["message"].get<std::string>(),
              HasSubstr("\"none/such\" does not exist"));
  ExpectError(Get("/v1/models/"), "404", "invalid_request_error", "model");
  ExpectError(Get("/v1/none"), "404", "invalid_request_error", nullptr);
  ExpectError(Get("/v1/chat/completions"), "405", "invalid_request_error", nullptr);
  RawClient client(server_->port());
  client.Send("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
  const auto [head, body] = client.ReadResponse();
  EXPECT_THAT(head, HasSubstr("text/plain; version=0.0.4"));
  EXPECT_EQ(body, "vllm:x 1\n");
}

TEST_F(OpenAiApiTest, ChatWhole) {
  RawClient client(server_->port());
  client.Send(Post("/v1/chat/completions", ChatBody(), "X-Request-Id: abc\r\n"));
  WaitForRequests(1);
  EXPECT_EQ(engine_.request(0).prompt_token_ids.size(), 9);  // "user:hi;A"
  engine_.Emit(0, {.text = "Hel"});
  engine_.Emit(0, {.text = "lo\n",
                   .finish_reason = FinishReason::kStop,
                   .num_prompt_tokens = 9,
                   .num_cached_tokens = 4,
                   .num_generated_tokens = 2});
  auto [head, body] = Response(&client);
  EXPECT_THAT(head, StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(head, HasSubstr("Content-Type: application/json\r\n"));
  EXPECT_THAT(head, HasSubstr("x-request-id: abc\r\n"));
  EXPECT_THAT(body["id"].get<std::string>(), StartsWith("chatcmpl-"));
  EXPECT_GT(body["created"].get<int64_t>(), 1'600'000'000);
  body.erase("id");
  body.erase("created");
  EXPECT_EQ(body, *ParseJson(R"({"object":"chat.completion","model":"org/fake",
      "system_fingerprint":"fp","choices":[{"index":0,"message":{"role":"assistant",
      "content":"Hello\n","refusal":null},"logprobs":null,"finish_reason":"stop",
      "stop_reason":null}],"usage":{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11,
      "prompt_tokens_details":{"cached_tokens":4}}})"));
}

TEST_F(OpenAiApiTest, ChatStream) {
  RawClient client(server_->port());
  client.Send(Post("/v1/chat/completions",
                   ChatBody(R"(,"stream":true,"stream_options":{"include_usage":true})")));
  WaitForRequests(1);
  engine_.Emit(0, {.text = "a"});
  engine_.Emit(0, {.text = ""});  // held back: no event
  engine_.Emit(0, {.text = "b",
                   .finish_reason = FinishReason::kLength,
                   .num_prompt_tokens = 9,
                   .num_generated_tokens = 3});
  const auto [head, body] = client.ReadResponse();
  EXPECT_THAT(head, HasSubstr("Content-Type: text/event-stream"));
  EXPECT_THAT(head, HasSubstr("x-request-id: "));
  const std::vector<json> events = Events(body);
  // A chunk before the first token would be a first token to clients that measure.
  ASSERT_EQ(events.size(), 3);
  EXPECT_EQ(events[0]["object"], "chat.completion.chunk");
  EXPECT_EQ(events[0]["choices"][0]["delta"], json({{"role", "assistant"}, {"content", "a"}}));
  EXPECT_EQ(events[0]["usage"], nullptr);
  EXPECT_EQ(events[0]["choices"][0]["finish_reason"], nullptr);
  EXPECT_EQ(events[1]["choices"][0]["delta"], json({{"content", "b"}}));
  EXPECT_EQ(events[1]["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(events[2]["choices"], json::array());
  EXPECT_EQ(events[2]["usage"]["total_tokens"], 12);
  for (const json& event : events) EXPECT_EQ(event["id"], events[0]["id"]);
  // The connection goes on.
  client.Send("GET /version HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(client.ReadResponse().first, StartsWith("HTTP/1.1 200"));
}

TEST_F(OpenAiApiTest, StreamWithoutUsageHasNone) {
  RawClient client(server_->port());
  client.Send(Post("/v1/completions", R"({"prompt":"x","stream":true})"));
  WaitForRequests(1);
  EXPECT_EQ(engine_.request(0).sampling.max_tokens, 16);
  engine_.Emit(0, {.text = "a", .finish_reason = FinishReason::kStop, .stop_reason = 65});
  const std::vector<json> events = Events(client.ReadResponse().second);
  ASSERT_EQ(events.size(), 1);
  EXPECT_EQ(events[0]["object"], "text_completion");
  EXPECT_EQ(events[0]["choices"][0]["text"], "a");
  EXPECT_EQ(events[0]["choices"][0]["stop_reason"], 65);
  EXPECT_FALSE(events[0].contains("usage"));
}

TEST_F(OpenAiApiTest, SeveralPromptsAndChoices) {
  RawClient client(server_->port());
  client.Send(Post("/v1/completions", R"({"prompt":["ab","c"],"n":2,"logprobs":1,"seed":5})"));
  WaitForRequests(4);
  for (engine::RequestId id : {3, 1, 0, 2}) {
    EXPECT_EQ(engine_.request(id).sampling.seed, 5 + id % 2);
    const auto token = static_cast<int32_t>('p' + id);
    engine_.Emit(id, {.text = std::string(1, static_cast<char>(token)),
                      .token_ids = {token},
                      .logprobs = {{.sampled = {.token_id = token, .logprob = -1.0F, .rank = 1},
                                    .top = {{.token_id = token, .logprob = -1.0F, .rank = 1}}}},
                      .finish_reason = FinishReason::kStop,
                      .stop_reason = "END",
                      .num_prompt_tokens = id < 2 ? 3 : 2,
                      .num_generated_tokens = 1});
  }
  const json body = Response(&client).second;
  ASSERT_EQ(body["choices"].size(), 4);
  for (size_t i = 0; i < 4; ++i) {
    const std::string text(1, static_cast<char>('p' + i));
    const json& choice = body["choices"][i];
    EXPECT_EQ(choice["index"], i);
    EXPECT_EQ(choice["text"], text);
    EXPECT_EQ(choice["stop_reason"], "END");
    EXPECT_EQ(choice["logprobs"], json({{"tokens", {text}},
                                        {"token_logprobs", {-1.0}},
                                        {"top_logprobs", json::array({{{text, -1.0}}})},
                                        {"text_offset", {0}}}));
  }
  EXPECT_EQ(body["usage"]["prompt_tokens"], 5);  // each prompt once
  EXPECT_EQ(body["usage"]["completion_tokens"], 4);
}

TEST_F(OpenAiApiTest, StreamsLogprobsEvenOfHeldBackText) {
  RawClient client(server_->port());
  client.Send(Post("/v1/chat/completions", ChatBody(R"(,"stream":true,"logprobs":true)")));
  WaitForRequests(1);
  EXPECT_EQ(engine_.request(0).sampling.logprobs, 0);
  engine_.Emit(0, {.text = "",
                   .token_ids = {0xc3},
                   .logprobs = {{.sampled = {.token_id = 0xc3, .logprob = -2.0F}}}});
  engine_.Emit(0, {.text = "\xc3\xa9", .finish_reason = FinishReason::kStop});
  const std::vector<json> events = Events(client.ReadResponse().second);
  ASSERT_EQ(events.size(), 2);
  EXPECT_EQ(events[0]["choices"][0]["delta"], json({{"role", "assistant"}, {"content", ""}}));
  EXPECT_EQ(events[0]["choices"][0]["logprobs"]["content"][0]["bytes"], json({0xc3}));
  EXPECT_EQ(events[1]["choices"][0]["delta"], json({{"content", "é"}}));
}

TEST_F(OpenAiApiTest, WholeAnswersGrowDeltaByDelta) {
  for (const bool chat : {true, false}) {
    RawClient client(server_->port());
    client.Send(chat ? Post("/v1/chat/completions", ChatBody(R"(,"logprobs":true)"))
                     : Post("/v1/completions", R"({"prompt":"x","logprobs":0})"));
    const engine::RequestId id = chat ? 0 : 1;
    WaitForRequests(id + 1);
    for (const char c : {'a', '"', '\n'}) {
      engine_.Emit(id, {.text = std::string(1, c),
                        .logprobs = {{.sampled = {.token_id = c, .logprob = -1.0F}}}});
    }
    engine_.Emit(id, {.finish_reason = FinishReason::kLength});
    const json choice = Response(&client).second["choices"][0];
    EXPECT_EQ(chat ? choice["message"]["content"] : choice["text"], "a\"\n");
    EXPECT_EQ(choice["finish_reason"], "length");
    if (chat) {
      ASSERT_EQ(choice["logprobs"]["content"].size(), 3);
      EXPECT_EQ(choice["logprobs"]["content"][2]["token"], "\n");
    } else {
      EXPECT_EQ(choice["logprobs"]["text_offset"], json({0, 1, 2}));
      EXPECT_EQ(choice["logprobs"]["tokens"], json({"a", "\"", "\n"}));
    }
  }
}

TEST_F(OpenAiApiTest, IdsAreUnique) {
  std::set<std::string> ids;
  for (size_t i = 0; i < 5; ++i) {
    RawClient client(server_->port());
    client.Send(Post("/v1/completions", R"({"prompt":"x"})"));
    WaitForRequests(i + 1);
    engine_.Emit(i, {.finish_reason = FinishReason::kStop});
    ids.insert(Response(&client).second["id"].get<std::string>());
  }
  EXPECT_EQ(ids.size(), 5);
}

TEST_F(OpenAiApiTest, Refusals) {
  const std::string chat = "/v1/chat/completions";
  const std::string kind = "invalid_request_error";
  ExpectError(Ask(Post(chat, "{")), "400", kind, nullptr);
  ExpectError(Ask(Post(chat, "")), "400", kind, nullptr);
  ExpectError(Ask(Post(chat, "{\"messages\":\"\xff\"}")), "400", kind, nullptr);
  ExpectError(Ask(Post(chat, std::string(100'000, '['))), "400", kind, nullptr);
  ExpectError(Ask(Post(chat, ChatBody(R"(,"temperature":1e400)"))), "400", kind, nullptr);
  ExpectError(Ask(Post(chat, ChatBody(R"(,"tools":[{}])"))), "400", kind, "tools");
  ExpectError(Ask(Post(chat, ChatBody(R"(,"n":1000000000)"))), "400", kind, "n");
  ExpectError(Ask(Post(chat, ChatBody(R"(,"n":0)"))), "400", kind, "n");
  ExpectError(Ask(Post(chat, ChatBody(R"(,"max_tokens":56)"))), "400", kind, "max_tokens");
  ExpectError(Ask(Post(chat, ChatBody(R"(,"max_tokens":5,"min_tokens":6)"))), "400", kind,
              "min_tokens");
  ExpectError(Ask(Post("/v1/completions", R"({"prompt":")" + std::string(70, 'x') + "\"}")), "400",
              kind, "prompt");
  ExpectError(Ask(Post(chat, R"({"model":"gpt","messages":[{"role":"user","content":"a"}]})")),
              "404", kind, "model");
  ExpectError(Ask(Post(chat, "{}", "Content-Encoding: gzip\r\n")), "400", kind, "Content-Encoding");
  ExpectError(Ask(Post("/v1/completions", std::string((1 << 20) + 1, ' '))), "413", kind, nullptr);
  EXPECT_EQ(engine_.num_requests(), 0);
  EXPECT_THAT(Get("/version").first, StartsWith("HTTP/1.1 200"));
}

TEST_F(OpenAiApiTest, BusyAndNotReadySayWhenToComeBack) {
  engine_.submit_status = absl::ResourceExhaustedError("16 requests wait, the limit is 16");
  auto response = Ask(Post("/v1/chat/completions", ChatBody(R"(,"stream":true)")));
  ExpectError(response, "429", "rate_limit_error", nullptr);
  EXPECT_THAT(response.first, HasSubstr("Retry-After: "));
  gate_.Close();
  response = Get("/v1/models");
  ExpectError(response, "503", "service_unavailable_error", nullptr);
  EXPECT_THAT(response.first, HasSubstr("Retry-After: "));
  ExpectError(Ask(Post("/v1/chat/completions", ChatBody())), "503", "service_unavailable_error",
              nullptr);
}

TEST_F(OpenAiApiTest, AClientThatLeavesCancels) {
  size_t count = 0;
  for (const char* stream : {"", R"(,"stream":true)"}) {
    RawClient client(server_->port());
    client.Send(Post("/v1/chat/completions", ChatBody(std::string(stream) + R"(,"n":2)")));
    count += 2;
    WaitForRequests(count);
    client.Close();
    EXPECT_TRUE(Eventually([&] { return engine_.num_cancelled() == count; })) << stream;
    engine_.Emit(count - 2, {.finish_reason = FinishReason::kAbort});
    engine_.Emit(count - 1, {.finish_reason = FinishReason::kAbort});
  }
}

TEST_F(OpenAiApiTest, ASlowReaderIsCancelled) {
  RawClient client(server_->port(), 4096);
  client.Send(Post("/v1/chat/completions", ChatBody(R"(,"stream":true)")));
  WaitForRequests(1);
  const std::string text(50'000, 'x');
  for (int i = 0; i < 2000 && engine_.num_cancelled() == 0; ++i) engine_.Emit(0, {.text = text});
  EXPECT_EQ(engine_.num_cancelled(), 1);
  engine_.Emit(0, {.finish_reason = FinishReason::kAbort});
  EXPECT_TRUE(Eventually([&] { return server_->num_connections() == 0; }));
}

TEST_F(OpenAiApiTest, EngineErrorsReachTheClient) {
  {
    RawClient client(server_->port());
    client.Send(Post("/v1/chat/completions", ChatBody(R"(,"n":2)")));
    WaitForRequests(2);
    engine_.Emit(
        0, {.finish_reason = FinishReason::kError, .error = absl::InternalError("step failed")});
    ExpectError(Response(&client), "500", "server_error", nullptr);
    // The other choice is of no use any more.
    EXPECT_TRUE(Eventually([&] { return engine_.num_cancelled() == 2; }));
    engine_.Emit(1, {.text = "late", .finish_reason = FinishReason::kAbort});
  }
  {
    RawClient client(server_->port());
    client.Send(Post("/v1/chat/completions", ChatBody(R"(,"stream":true)")));
    WaitForRequests(3);
    engine_.Emit(2, {.text = "a"});
    engine_.Emit(2, {.finish_reason = FinishReason::kAbort});
    const std::vector<json> events = Events(client.ReadResponse().second);
    ASSERT_EQ(events.size(), 2);
    EXPECT_EQ(events[1]["error"]["type"], "service_unavailable_error");
  }
}

TEST_F(OpenAiApiTest, TokenizeAndBack) {
  EXPECT_EQ(Ask(Post("/tokenize", R"({"prompt":"ab","return_token_strs":true})")).second,
            *ParseJson(R"({"count":3,"max_model_len":64,"tokens":[256,97,98],
                           "token_strs":["<s>","a","b"]})"));
  EXPECT_EQ(Ask(Post("/tokenize", R"({"prompt":"a","add_special_tokens":false})")).second["tokens"],
            json({97}));
  EXPECT_EQ(Ask(Post("/tokenize", ChatBody())).second["count"], 9);
  EXPECT_EQ(Ask(Post("/tokenize", ChatBody(R"(,"add_special_tokens":true)"))).second["count"], 10);
  EXPECT_EQ(Ask(Post("/detokenize", R"({"tokens":[256,97,98]})")).second,
            json({{"prompt", "<s>ab"}}));
  ExpectError(Ask(Post("/detokenize", R"({"tokens":[999]})")), "400", "invalid_request_error",
              "tokens");
  ExpectError(Ask(Post("/tokenize", R"({"model":"x","prompt":"a"})")), "404",
              "invalid_request_error", "model");
}

TEST_F(OpenAiApiTest, LargeRequestsArePreparedBesideTheIoThreads) {
  const std::string large =
      Post("/tokenize", R"({"prompt":"wait)" + std::string(70'000, 'x') + "\"}");
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 2; ++i) {  // one is prepared, one waits
    clients.push_back(std::make_unique<RawClient>(server_->port()));
    clients.back()->Send(large);
    ASSERT_TRUE(Eventually([&] { return server_->buffered_bytes() > 70'000 * (i + 1); }));
    ASSERT_TRUE(Eventually([&] { return tokenizer_.num_waiting.load() == 1; }));
  }
  // As many refusals as there are io threads, and probes: none of these stands still.
  for (int i = 0; i < 4; ++i) {
    const auto refused = Ask(large);
    ExpectError(refused, "429", "rate_limit_error", nullptr);
    EXPECT_THAT(refused.first, HasSubstr("Retry-After: "));
    EXPECT_THAT(Get("/version").first, StartsWith("HTTP/1.1 200"));
  }
  tokenizer_.go_on.store(true);
  for (const auto& client : clients) EXPECT_EQ(Response(client.get()).second["count"], 70'005);
  EXPECT_TRUE(Eventually([&] { return server_->buffered_bytes() == 0; }));
}

TEST_F(OpenAiApiTest, ALargeRequestMayOutliveItsClientAndTheApi) {
  {
    RawClient client(server_->port());
    client.Send(Post("/tokenize", R"({"prompt":"wait)" + std::string(70'000, 'x') + "\"}"));
    ASSERT_TRUE(Eventually([&] { return tokenizer_.num_waiting.load() == 1; }));
  }
  RawClient waiting(server_->port());
  waiting.Send(Post("/tokenize", R"({"prompt":")" + std::string(70'000, 'x') + "\"}"));
  ASSERT_TRUE(Eventually([&] { return server_->buffered_bytes() > 140'000; }));
  std::thread stopper([&] { api_.reset(); });
  ExpectError(Response(&waiting), "500", "server_error", nullptr);  // dropped
  tokenizer_.go_on.store(true);
  stopper.join();
  ExpectError(Ask(Post("/tokenize", R"({"prompt":")" + std::string(70'000, 'x') + "\"}")), "503",
              "service_unavailable_error", nullptr);
}

TEST_F(OpenAiApiTest, ChatWithSpecialTokensAddsThem) {
  RawClient client(server_->port());
  client.Send(Post("/v1/chat/completions", ChatBody(R"(,"add_special_tokens":true)")));
  WaitForRequests(1);
  EXPECT_EQ(engine_.request(0).prompt_token_ids.front(), 256);
  engine_.Emit(0, {.finish_reason = FinishReason::kStop});
  EXPECT_EQ(Response(&client).second["object"], "chat.completion");
}

TEST_F(OpenAiApiTest, BadRequestIdsAreReplaced) {
  const auto response = Ask(Post("/tokenize", R"({"prompt":"a"})", "X-Request-Id: has space\r\n"));
  EXPECT_THAT(response.first, Not(HasSubstr("has space")));
  EXPECT_THAT(response.first, HasSubstr("x-request-id: "));
}

}  // namespace
}  // namespace nibble::server
