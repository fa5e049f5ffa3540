// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Load tests of a server that says what the test tells it to.

#include "client/load/http_transport.h"

#include <sys/resource.h>

#include <mutex>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/json.h"
#include "client/load/http_api.h"
#include "client/load/load_test.h"
#include "server/http/http_server.h"

namespace nibble::client {
namespace {

using nlohmann::json;
using server::HttpRequest;
using server::HttpResponder;
using ::testing::HasSubstr;
using Responder = std::shared_ptr<HttpResponder>;

std::string Event(const json& data) { return "data: " + data.dump() + "\n\n"; }
std::string Token(const char* finish = nullptr) {
  json choice = {{"index", 0}, {"text", "a"}, {"finish_reason", nullptr}};
  if (finish != nullptr) choice["finish_reason"] = finish;
  return Event({{"choices", {choice}}, {"usage", nullptr}});
}
std::string End(int prompt, int completion) {
  return Event({{"choices", json::array()},
                {"usage", {{"prompt_tokens", prompt}, {"completion_tokens", completion}}}}) +
         "data: [DONE]\n\n";
}

class HttpTransportTest : public ::testing::Test {
 protected:
  using Answer = std::function<void(const json& body, Responder responder)>;

  HttpTransportTest() {
    server_ = *server::HttpServer::Create({.port = 0});
    server_->Handle("POST", "/v1/completions", [this](HttpRequest request, Responder responder) {
      Answer answer;
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        requests_.push_back(request);
        answer = answer_;
      }
      answer(*ParseJson(request.body), std::move(responder));
    });
    server_->Handle("GET", "/v1/models", [this](HttpRequest, Responder responder) {
      responder->Send(models_status_, "application/json",
                      R"({"data":[{"id":"m","max_model_len":100},{"id":"n"},)"
                      R"({"id":"v","vocab_size":300}]})");
    });
    // 300 tokens, whose text is their number.
    server_->Handle("POST", "/detokenize", [this](HttpRequest request, Responder responder) {
      ++num_detokenized_;
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        detokenize_peers_.insert(request.remote_address);
      }
      const json body = *ParseJson(request.body);
      if (num_detokenized_ == fail_detokenize_at_) {
        return responder->Send(fail_detokenize_with_, "application/json", "{}");
      }
      if (detokenize_status_ != 200) {
        return responder->Send(detokenize_status_, "application/json", "{}");
      }
      if (body["tokens"][0].get<int>() >= 300) {
        return responder->Send(400, "application/json", R"({"error":{"message":"no such id"}})");
      }
      responder->Send(200, "application/json", json{{"prompt", "x"}}.dump());
    });
    const absl::Status status = server_->Start();
    EXPECT_TRUE(status.ok()) << status;
    options_.url = "http://127.0.0.1:" + std::to_string(server_->port());
    options_.dataset = {.num_prompts = 3, .random_input_len = 4, .random_output_len = 2};
  }
  ~HttpTransportTest() override { server_->Stop(); }

  void SetAnswer(Answer answer) {
    const std::lock_guard<std::mutex> lock(mutex_);
    answer_ = std::move(answer);
  }
  void SetStream(const std::string& bytes) {
    SetAnswer([bytes](const json&, const Responder& responder) {
      responder->StartStream(200, "text/event-stream");
      responder->Write(bytes);
      responder->EndStream();
    });
  }
  void SetError(int status, const std::string& body) {
    SetAnswer([=](const json&, const Responder& responder) {
      responder->Send(status, "application/json", body);
    });
  }
  // Runs at 1, 2 and 4 at a time; `on_row` is told how many rows there are.
  SweepResult Sweep(const std::function<void(int)>& on_row) {
    api_ = MakeHttpApi(*ParseHttp(options_), options_.path());
    int rows = 0;
    return RunSweep({.load = options_, .max_concurrencies = {1, 2, 4}}, {.id = "m"},
                    {.server = api_.get(), .hooks = {.interrupted = &interrupted_}},
                    [&](const std::string&) { on_row(rows++); });
  }
  absl::StatusOr<LoadResult> Run() {
    absl::Status status = options_.Validate();
    if (!status.ok()) return status;
    api_ = MakeHttpApi(*ParseHttp(options_), options_.path());
    const LoadEnvironment environment{.server = api_.get(), .with_details = true};
    NIBBLE_ASSIGN_OR_RETURN(const ServedModel model, WaitUntilReady(options_, environment));
    return RunLoadTest(options_, model, environment);
  }
  nlohmann::ordered_json Result() {
    auto result = Run();
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? result->json : nlohmann::ordered_json::object();
  }
  // The error that all requests failed with.
  std::string Failure() {
    const auto result = Result();
    EXPECT_EQ(result.value("completed", -1), 0);
    EXPECT_EQ(result.value("failed", -1), 3);
    return result.contains("error_counts") && result["error_counts"].size() == 1
               ? result["error_counts"][0]["error"].get<std::string>()
               : result.dump();
  }

  std::mutex mutex_;  // guards answer_, requests_, detokenize_peers_
  Answer answer_;
  std::vector<HttpRequest> requests_;
  std::set<std::string> detokenize_peers_;
  std::atomic<int> models_status_{200};
  std::atomic<int> detokenize_status_{200};
  std::atomic<int> num_detokenized_{0};
  std::atomic<int> fail_detokenize_at_{-1};  // 1: at the first
  std::atomic<int> fail_detokenize_with_{503};
  std::atomic<bool> interrupted_{false};
  std::unique_ptr<server::HttpServer> server_;
  std::unique_ptr<ServerApi> api_;
  LoadOptions options_;
};

TEST_F(HttpTransportTest, AnswersAreCounted) {
  SetStream(Token() + Token("length") + End(4, 2));
  const auto result = Result();
  EXPECT_EQ(result["completed"], 3);
  EXPECT_EQ(result["total_output_tokens"], 6);
  EXPECT_EQ(result["total_input_tokens"], 12);
  EXPECT_EQ(result["model_id"], "m");
  EXPECT_EQ(result["finish_reasons"].dump(), R"(["length","length","length"])");
}

TEST_F(HttpTransportTest, AChunkIsNotAToken) {
  SetStream(Token() + Token("stop") + End(4, 9));
  EXPECT_EQ(Result()["total_output_tokens"], 27);
}

TEST_F(HttpTransportTest, WithoutUsageThePromptsOwnLengthCounts) {
  SetStream(Token() + Token("stop") + "data: [DONE]\n\n");
  const auto result = Result();
  EXPECT_EQ(result["total_input_tokens"], 3 * 4);
  EXPECT_EQ(result["total_output_tokens"], 3 * 2);
  EXPECT_EQ(result["requests_without_usage"], 3);
}

TEST_F(HttpTransportTest, RequestsSayWhatTheyShould) {
  options_.sampling.temperature = 0;
  options_.extra_body = R"({"logprobs": 1, "temperature": 0.5})";
  options_.headers = {"X-Test=yes"};
  options_.security.api_key = "secret";
  SetStream(Token("stop") + End(4, 1));
  EXPECT_EQ(Result()["completed"], 3);
  const std::lock_guard<std::mutex> lock(mutex_);
  const json body = *ParseJson(requests_[0].body);
  EXPECT_EQ(body["model"], "m");
  EXPECT_EQ(body["prompt"].size(), 4u);
  for (const json& id : body["prompt"]) EXPECT_LT(id.get<int>(), 300);
  EXPECT_EQ(body["max_tokens"], 2);
  EXPECT_EQ(body["ignore_eos"], true);
  EXPECT_EQ(body["stream_options"]["include_usage"], true);
  EXPECT_EQ(body["temperature"], 0.5);
  EXPECT_EQ(body["logprobs"], 1);
  EXPECT_EQ(requests_[0].Header("x-test"), "yes");
  EXPECT_EQ(requests_[0].Header("authorization"), "Bearer secret");
}

TEST_F(HttpTransportTest, FailuresSayWhy) {
  SetError(429, R"({"error":{"message":"the queue is full"}})");
  EXPECT_EQ(Failure(), "HTTP 429: the queue is full");
  SetError(502, "<html>bad gateway</html>");
  EXPECT_EQ(Failure(), "HTTP 502: <html>bad gateway</html>");
  SetError(500, "");
  EXPECT_EQ(Failure(), "HTTP 500");
  SetStream(Token() + Event({{"error", {{"message", "engine died"}}}}) + "data: [DONE]\n\n");
  EXPECT_EQ(Failure(), "engine died");
  SetStream(Token() + Token());
  EXPECT_EQ(Failure(), "the stream ended before the answer did");
  SetStream("data: [DONE]\n\n");
  EXPECT_EQ(Failure(), "an answer without a token");
  SetError(400, R"({"error":{"message":"\u001b[2J)" + std::string(1000, 'x') + R"("}})");
  EXPECT_EQ(Failure(), "HTTP 400:  [2J" + std::string(296, 'x') + "...");
  SetStream(Token() + Event({{"error", {{"message", "\x1b[2J"}}}}) + "data: [DONE]\n\n");
  EXPECT_EQ(Failure(), " [2J");
  SetStream(Token() + "data: " + std::string(5 << 20, 'x'));
  EXPECT_EQ(Failure(), "an event of more than 4194304 bytes");
  SetStream("data: nonsense\n\n" + Token("stop"));
  EXPECT_EQ(Failure(), "an event that is not JSON");
}

TEST_F(HttpTransportTest, AConnectionThatEndsIsAFailure) {
  SetAnswer([](const json&, const Responder& responder) {
    responder->StartStream(200, "text/event-stream");
    responder->Write(Token());
  });  // the responder is dropped: the connection ends within the answer
  EXPECT_THAT(Failure(), HasSubstr("cannot read from 127.0.0.1:"));
}

TEST_F(HttpTransportTest, ARequestHasATimeLimit) {
  options_.request_timeout_seconds = 0.05;
  std::vector<Responder> kept;
  SetAnswer([&](const json&, const Responder& responder) {
    const std::lock_guard<std::mutex> lock(mutex_);
    kept.push_back(responder);
  });
  EXPECT_EQ(Failure(), "no whole answer in 0.05 s");
  const std::lock_guard<std::mutex> lock(mutex_);
  kept.clear();
}

TEST_F(HttpTransportTest, ConnectionsAreUsedAgain) {
  options_.dataset.num_prompts = 50;
  options_.max_concurrency = 2;
  SetStream(Token("stop") + End(4, 1));
  EXPECT_EQ(Result()["completed"], 50);
  const std::lock_guard<std::mutex> lock(mutex_);
  std::set<std::string> peers;
  for (const HttpRequest& request : requests_) peers.insert(request.remote_address);
  EXPECT_EQ(requests_.size(), 50u);
  EXPECT_LE(peers.size(), 2u);
}

TEST_F(HttpTransportTest, AServerWithoutTheModelIsAnError) {
  options_.model = "other";
  EXPECT_THAT(std::string(Run().status().message()),
              HasSubstr("has no 'other'; it serves m, n, v"));
  options_.model = "n";
  SetStream(Token("stop") + End(4, 1));
  EXPECT_EQ(Result()["model_id"], "n");
}

TEST_F(HttpTransportTest, AGuardedServerWantsAKey) {
  models_status_ = 401;
  EXPECT_THAT(std::string(Run().status().message()), HasSubstr("--api-key or NIBBLE_API_KEY"));
}

TEST_F(HttpTransportTest, AServerThatIsNotReadyIsWaitedFor) {
  models_status_ = 503;
  EXPECT_EQ(Run().status().code(), absl::StatusCode::kUnavailable);
  options_.ready_check_timeout_seconds = 60;
  SetStream(Token("stop") + End(4, 1));
  api_ = MakeHttpApi(*ParseHttp(options_), options_.path());
  const auto model = WaitUntilReady(
      options_, {.server = api_.get(), .say = [&](const std::string&) { models_status_ = 200; }});
  EXPECT_TRUE(model.ok()) << model.status();
}

TEST_F(HttpTransportTest, AProxyWithoutItsServerIsWaitedFor) {
  api_ = MakeHttpApi(*ParseHttp(options_), options_.path());
  options_.ready_check_timeout_seconds = 60;
  for (const int status : {502, 504}) {
    models_status_ = status;
    const auto model = WaitUntilReady(
        options_, {.server = api_.get(), .say = [&](const std::string&) { models_status_ = 200; }});
    EXPECT_TRUE(model.ok()) << model.status();
  }
}

TEST_F(HttpTransportTest, WaitingCanBeInterrupted) {
  models_status_ = 503;
  options_.ready_check_timeout_seconds = 600;
  api_ = MakeHttpApi(*ParseHttp(options_), options_.path());
  const auto model =
      WaitUntilReady(options_, {.server = api_.get(),
                                .hooks = {.interrupted = &interrupted_},
                                .say = [&](const std::string&) { interrupted_ = true; }});
  EXPECT_TRUE(absl::IsCancelled(model.status())) << model.status();
}

TEST_F(HttpTransportTest, ABusyServerIsNoEndOfTheVocabulary) {
  for (const int status : {429, 500, 503}) {
    detokenize_status_ = 200;
    num_detokenized_ = 0;
    fail_detokenize_at_ = 5;
    fail_detokenize_with_ = status;
    api_ = MakeHttpApi(*ParseHttp(options_), options_.path());
    api_->SetModel({.id = "m"});
    const auto tokens = api_->PlainTokens();
    EXPECT_FALSE(tokens.ok()) << status;
    EXPECT_THAT(std::string(tokens.status().message()), HasSubstr(std::to_string(status)));
  }
  fail_detokenize_at_ = -1;
  const auto tokens = api_->PlainTokens();
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(tokens->size(), 300u);
}

TEST_F(HttpTransportTest, AServerThatTellsItsVocabularyIsNotAskedForTokens) {
  options_.model = "v";
  SetStream(Token("stop") + End(4, 1));
  EXPECT_EQ(Result()["completed"], 3);
  EXPECT_EQ(num_detokenized_, 0);
}

TEST_F(HttpTransportTest, QuestionsShareAConnection) {
  SetStream(Token("stop") + End(4, 1));
  EXPECT_EQ(Result()["completed"], 3);
  EXPECT_GT(num_detokenized_, 5);
  const std::lock_guard<std::mutex> lock(mutex_);
  EXPECT_EQ(detokenize_peers_.size(), 1u);
}

TEST_F(HttpTransportTest, WhatCannotFitIsNotSent) {
  options_.dataset.random_input_len = 60;
  options_.dataset.random_output_len = 41;
  const absl::Status status = Run().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("the longest has 60 prompt tokens and asks for 41, m has 100 for both"));
  options_.dataset.random_output_len = 40;
  SetStream(Token("stop") + End(4, 1));
  EXPECT_EQ(Result()["completed"], 3);
}

TEST_F(HttpTransportTest, ExtraBodiesAreChecked) {
  SetStream(Token("stop") + End(4, 1));
  for (const char* extra : {"[1]", "{", R"({"stream": false})", R"({"max_tokens": 5})"}) {
    options_.extra_body = extra;
    EXPECT_THAT(std::string(Run().status().message()), HasSubstr("--extra-body")) << extra;
  }
}

TEST_F(HttpTransportTest, ASweepKeepsTheRunsBeforeTheServerFailed) {
  SetStream(Token("stop") + End(4, 1));
  const SweepResult sweep = Sweep([&](int rows) {
    if (rows == 2) detokenize_status_ = 503;  // of the head and two runs
  });
  ASSERT_EQ(sweep.json["results"].size(), 2u);
  EXPECT_EQ(sweep.json["results"][1]["completed"], 3);
  EXPECT_FALSE(sweep.json["results"][1].contains("ttfts"));
  EXPECT_FALSE(sweep.interrupted);
  EXPECT_EQ(sweep.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(sweep.status.message()), HasSubstr("the run at 4: "));
}

TEST_F(HttpTransportTest, ASweepKeepsTheRunsBeforeAWarmUpThatFailed) {
  options_.num_warmups = 1;
  SetStream(Token("stop") + End(4, 1));
  const SweepResult sweep = Sweep([&](int rows) {
    if (rows == 1) SetError(500, "");
  });
  EXPECT_EQ(sweep.json["results"].size(), 1u);
  EXPECT_EQ(sweep.status.message(), "the run at 2: warming up: HTTP 500");
}

TEST_F(HttpTransportTest, ASweepKeepsTheRunsBeforeAnInterruptInAWarmUp) {
  options_.num_warmups = 1;
  std::vector<Responder> kept;
  SetStream(Token("stop") + End(4, 1));
  const SweepResult sweep = Sweep([&](int rows) {
    if (rows != 1) return;
    SetAnswer([&](const json&, const Responder& responder) {
      interrupted_ = true;
      const std::lock_guard<std::mutex> lock(mutex_);
      kept.push_back(responder);
    });
  });
  EXPECT_EQ(sweep.json["results"].size(), 1u);
  EXPECT_TRUE(sweep.interrupted);
  EXPECT_TRUE(sweep.status.ok()) << sweep.status;
  const std::lock_guard<std::mutex> lock(mutex_);
  kept.clear();
}

// All are answered together once all are there: they are in progress at the same time.
TEST_F(HttpTransportTest, TwoThousandStreamsAtOnce) {
  constexpr size_t kStreams = 2000;
  constexpr int kTokens = 5;
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  if (limit.rlim_max < 2 * kStreams + 200) {
    GTEST_SKIP() << "open files are limited to " << limit.rlim_max;
  }
  std::vector<Responder> waiting;
  SetAnswer([&](const json&, Responder responder) {
    responder->StartStream(200, "text/event-stream");
    std::vector<Responder> all;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      waiting.push_back(std::move(responder));
      if (waiting.size() == kStreams) all.swap(waiting);
    }
    for (int token = 1; token <= kTokens; ++token) {
      for (const Responder& one : all) one->Write(Token(token == kTokens ? "length" : nullptr));
    }
    for (const Responder& one : all) {
      one->Write(End(4, kTokens));
      one->EndStream();
    }
  });
  options_.dataset = {.num_prompts = kStreams, .random_input_len = 4, .random_output_len = 5};
  const auto result = Result();
  EXPECT_EQ(result["completed"], kStreams);
  EXPECT_EQ(result["failed"], 0) << result["error_counts"].dump();
  EXPECT_EQ(result["total_output_tokens"], kStreams * kTokens);
  EXPECT_EQ(result["max_concurrent_requests"], kStreams);
}

}  // namespace
}  // namespace nibble::client
