// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A conversation with a server that says what the test tells it to.

#include "client/chat/conversation.h"

#include <mutex>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/json.h"
#include "server/http/http_server.h"
#include "tests/server/http/raw_client.h"

namespace nibble::client {
namespace {

using nlohmann::json;
using server::HttpRequest;
using server::HttpResponder;
using server::testing::Eventually;
using ::testing::HasSubstr;

constexpr const char* kEventStream = "text/event-stream";

std::string Event(const std::string& data) { return "data: " + data + "\n\n"; }
std::string Chunk(const std::string& text) {
  return Event(json{{"choices", {{{"index", 0}, {"delta", {{"content", text}}}}}}}.dump());
}

class ConversationTest : public ::testing::Test {
 protected:
  using Answer = std::function<void(const std::shared_ptr<HttpResponder>&)>;

  ConversationTest() {
    server_ = *server::HttpServer::Create({.port = 0});
    server_->Handle("POST", "/v1/chat/completions",
                    [this](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
                      Answer answer;
                      {
                        const std::lock_guard<std::mutex> lock(mutex_);
                        request_ = *ParseJson(request.body);
                        answer = answer_;
                      }
                      answer(responder);
                    });
    server_->Handle("GET", "/v1/models",
                    [this](HttpRequest, std::shared_ptr<HttpResponder> responder) {
                      responder->Send(models_status_, "application/json", models_);
                    });
    const absl::Status status = server_->Start();
    EXPECT_TRUE(status.ok()) << status;
  }
  ~ConversationTest() override { server_->Stop(); }

  Conversation MakeConversation(ChatOptions options = {.model = "m"}) {
    const auto url = Url::Parse("http://127.0.0.1:" + std::to_string(server_->port()));
    return {HttpClient(*url), options};
  }
  void SetAnswer(Answer answer) {
    const std::lock_guard<std::mutex> lock(mutex_);
    answer_ = std::move(answer);
  }
  // Answers with these bytes as a stream, then ends it.
  void SetStream(const std::string& bytes) {
    SetAnswer([bytes](const std::shared_ptr<HttpResponder>& responder) {
      responder->StartStream(200, kEventStream);
      responder->Write(bytes);
      responder->EndStream();
    });
  }
  json Request() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return request_;
  }
  absl::StatusOr<TurnStats> Say(Conversation* conversation, const std::string& text) {
    heard_.clear();
    return conversation->Say(
        text, [this](std::string_view piece) { heard_ += piece; }, cancel_);
  }
  // A turn that fails leaves no trace and does not end the conversation.
  void ExpectFailure(const std::string& stream, const std::string& message) {
    Conversation conversation = MakeConversation();
    SetStream(stream);
    const auto stats = Say(&conversation, "hi");
    EXPECT_EQ(stats.status().code(), absl::StatusCode::kUnavailable) << stream;
    EXPECT_THAT(std::string(stats.status().message()), HasSubstr(message)) << stream;
    EXPECT_TRUE(conversation.messages().empty());
    SetStream(Chunk("fine") + Event("[DONE]"));
    EXPECT_TRUE(Say(&conversation, "again").ok());
    EXPECT_EQ(heard_, "fine");
  }

  std::unique_ptr<server::HttpServer> server_;
  std::string models_ = R"({"data":[{"id":"org/fake"},{"id":"other"}]})";
  int models_status_ = 200;
  std::string heard_;
  std::atomic<bool> cancel_{false};

  std::mutex mutex_;
  Answer answer_;  // guarded by mutex_
  json request_;   // guarded by mutex_
};

TEST_F(ConversationTest, TurnsAreStreamedAndRemembered) {
  ChatOptions options{.model = "m", .system = "Be brief."};
  options.temperature = 0.5F;
  options.top_p = 0.25F;
  options.seed = 3;
  options.max_tokens = 9;
  Conversation conversation = MakeConversation(options);
  SetStream(": comment\n\n" + Event(R"({"choices":[{"index":0,"delta":{"role":"assistant"}}]})") +
            Chunk("Hel") + Chunk("lo ☃") +
            Event(R"({"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]})") +
            Event(R"({"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5}})") +
            Event("[DONE]") + Chunk("after the end"));
  auto stats = Say(&conversation, "hi");
  ASSERT_TRUE(stats.ok()) << stats.status();
  EXPECT_EQ(heard_, "Hello ☃");
  EXPECT_EQ(stats->prompt_tokens, 7);
  EXPECT_EQ(stats->completion_tokens, 5);
  EXPECT_EQ(stats->finish_reason, "stop");
  EXPECT_GE(stats->total_seconds, stats->first_token_seconds);
  const json system = {{"role", "system"}, {"content", "Be brief."}};
  const json user = {{"role", "user"}, {"content", "hi"}};
  json request = Request();
  EXPECT_EQ(request["model"], "m");
  EXPECT_EQ(request["messages"], json({system, user}));
  EXPECT_EQ(request["stream"], true);
  EXPECT_EQ(request["temperature"], 0.5);
  EXPECT_EQ(request["top_p"], 0.25);
  EXPECT_EQ(request["seed"], 3);
  EXPECT_EQ(request["max_tokens"], 9);

  ASSERT_TRUE(Say(&conversation, "more").ok());
  EXPECT_EQ(Request()["messages"], json({system,
                                         user,
                                         {{"role", "assistant"}, {"content", "Hello ☃"}},
                                         {{"role", "user"}, {"content", "more"}}}));
  conversation.Reset();
  EXPECT_EQ(conversation.messages(), json({system}));
}

TEST_F(ConversationTest, UnsetOptionsAreLeftToTheServer) {
  Conversation conversation = MakeConversation();
  SetStream(Event("[DONE]"));
  ASSERT_TRUE(Say(&conversation, "hi").ok());
  for (const char* name : {"temperature", "top_p", "seed", "max_tokens"}) {
    EXPECT_FALSE(Request().contains(name)) << name;
  }
}

TEST_F(ConversationTest, TheFirstModelIsFound) {
  Conversation conversation = MakeConversation({});
  const auto model = conversation.FindModel();
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(*model, "org/fake");
  SetStream(Event("[DONE]"));
  ASSERT_TRUE(Say(&conversation, "hi").ok());
  EXPECT_EQ(Request()["model"], "org/fake");
}

TEST_F(ConversationTest, AModelListOfAnotherFormIsAnError) {
  for (const char* body : {"", "no JSON", "[]", "{}", R"({"data":[]})", R"({"data":[{"id":3}]})",
                           R"({"data":[{"id":""}]})"}) {
    models_ = body;
    EXPECT_EQ(MakeConversation({}).FindModel().status().code(), absl::StatusCode::kUnavailable)
        << body;
  }
  models_status_ = 503;
  models_ = R"({"error":{"message":"draining"}})";
  EXPECT_THAT(std::string(MakeConversation({}).FindModel().status().message()),
              HasSubstr("503 to /v1/models: draining"));
}

TEST_F(ConversationTest, AnErrorAnswerIsShownAndTheTurnForgotten) {
  Conversation conversation = MakeConversation();
  for (const auto& [body, shown] : std::vector<std::pair<std::string, std::string>>{
           {R"({"error":{"message":"the prompt has 99 tokens"}})", "the prompt has 99 tokens"},
           {R"({"error":{"message":5}})", "message"},
           {R"({"error":"text"})", "text"},
           {"<html>\xFF", "<html>"},
           {std::string(100'000, 'x'), "xxx"}}) {
    SetAnswer([body = body](const std::shared_ptr<HttpResponder>& responder) {
      responder->Send(400, "application/json", body);
    });
    const auto stats = Say(&conversation, "hi");
    EXPECT_EQ(stats.status().code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(stats.status().message()), HasSubstr("400"));
    EXPECT_THAT(std::string(stats.status().message()), HasSubstr(shown));
    EXPECT_LT(stats.status().message().size(), 1000);
    EXPECT_TRUE(conversation.messages().empty());
    EXPECT_EQ(heard_, "");
  }
}

TEST_F(ConversationTest, StreamsThatGoWrong) {
  const std::string done = Event("[DONE]");
  ExpectFailure(Chunk("a") + Event(R"({"error":{"message":"burnt"}})") + done, "burnt");
  ExpectFailure(Event(R"({"error":{}})") + done, "reported an error");
  ExpectFailure("data: " + std::string(5 << 20, 'x'), "an event of more than 4194304 bytes");
  ExpectFailure(Event(R"({"error":{"message":"\u001b[2J"}})") + done, " [2J");
  ExpectFailure(Event(R"({"error":"text"})") + done, "reported an error");
  ExpectFailure(Event("{not json") + done, "not JSON");
  ExpectFailure(Event("[1]") + done, "not JSON");
  ExpectFailure(Event("{}") + done, "another form");
  ExpectFailure(Event(R"({"choices":[],"usage":{"prompt_tokens":"x"}})") + done, "another form");
  // The first error is the cause.
  ExpectFailure(Event(R"({"error":{"message":"burnt"}})") + Event("{}") + done, "burnt");
  ExpectFailure(Chunk("a"), "before the answer was complete");
  ExpectFailure("", "before the answer was complete");
  ExpectFailure(Chunk("a") + "data: [DONE]\n", "before the answer was complete");
}

TEST_F(ConversationTest, ChunksOfAnOddFormAreNoHarm) {
  Conversation conversation = MakeConversation();
  SetStream(Event(R"({"choices":null})") + Event(R"({"choices":[1,null,"x",{}]})") +
            Event(R"({"choices":[{"delta":null},{"delta":[]},{"delta":{"content":null}}]})") +
            Event(R"({"choices":[{"finish_reason":7,"delta":{"content":8}}],"usage":null})") +
            Chunk("ok") + Event("[DONE]"));
  const auto stats = Say(&conversation, "hi");
  ASSERT_TRUE(stats.ok()) << stats.status();
  EXPECT_EQ(heard_, "ok");
}

TEST_F(ConversationTest, ACutConnectionIsAnError) {
  Conversation conversation = MakeConversation();
  SetAnswer([](const std::shared_ptr<HttpResponder>& responder) {
    responder->StartStream(200, kEventStream);
    responder->Write(Chunk("some"));
    // Dropped without an end.
  });
  const auto stats = Say(&conversation, "hi");
  EXPECT_EQ(stats.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(conversation.messages().empty());
}

TEST_F(ConversationTest, CancellingKeepsWhatCameAndTellsTheServer) {
  Conversation conversation = MakeConversation();
  std::shared_ptr<HttpResponder> kept;  // the answer never ends
  std::atomic<bool> gone{false};
  SetAnswer([&](const std::shared_ptr<HttpResponder>& responder) {
    kept = responder;
    responder->OnDisconnect([&] { gone.store(true); });
    responder->StartStream(200, kEventStream);
    responder->Write(Chunk("some"));
  });
  const auto stats = conversation.Say(
      "hi",
      [&](std::string_view text) {
        heard_ += text;
        cancel_.store(true);
      },
      cancel_);
  EXPECT_TRUE(absl::IsCancelled(stats.status())) << stats.status();
  EXPECT_EQ(heard_, "some");
  EXPECT_EQ(conversation.messages(), json({{{"role", "user"}, {"content", "hi"}},
                                           {{"role", "assistant"}, {"content", "some"}}}));
  EXPECT_TRUE(Eventually([&] { return gone.load(); }));
  server_->Stop();
}

TEST_F(ConversationTest, CancellingBeforeTheFirstByte) {
  Conversation conversation = MakeConversation();
  std::shared_ptr<HttpResponder> kept;
  SetAnswer([&](const std::shared_ptr<HttpResponder>& responder) {
    kept = responder;
    cancel_.store(true);
  });
  EXPECT_TRUE(absl::IsCancelled(Say(&conversation, "hi").status()));
  server_->Stop();
}

TEST_F(ConversationTest, ALineThatIsNotUtf8IsRefusedHere) {
  Conversation conversation = MakeConversation();
  EXPECT_EQ(Say(&conversation, "\xFF").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(conversation.messages().empty());
}

}  // namespace
}  // namespace nibble::client
