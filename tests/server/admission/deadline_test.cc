// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Requests that end by their deadline, and what the log learns of requests.

#include <atomic>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/json.h"
#include "server/admission/watched_sink.h"
#include "tests/server/admission/fakes.h"
#include "tests/server/http/raw_client.h"

namespace nibble::server {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using testing::Eventually;
using ::testing::HasSubstr;

class LockedSink final : public GenerationSink {
 public:
  void OnDelta(int, engine::RequestOutput output) override {
    const std::lock_guard lock(mutex_);
    deltas_.push_back(std::move(output));
  }
  std::vector<engine::RequestOutput> deltas() const {
    const std::lock_guard lock(mutex_);
    return deltas_;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<engine::RequestOutput> deltas_;
};

class DeadlineTest : public ::testing::Test {
 protected:
  void Build(std::chrono::nanoseconds request_timeout, bool trace_texts = false) {
    GenerationService::Parts parts;
    parts.model = {.name = "fake", .max_model_len = 64, .vocab_size = 258};
    parts.engine = &engine_;
    parts.tokenizer = &tokenizer_;
    parts.request_timeout = request_timeout;
    parts.trace_texts = trace_texts;
    service_ = std::make_unique<GenerationService>(std::move(parts));
  }
  absl::Status Generate(steady_clock::time_point deadline = steady_clock::time_point::max(),
                        int64_t n = 1, std::chrono::seconds age = std::chrono::seconds(0)) {
    GenerateRequest request{.prompt = GenerateRequest::Text{{"prompt"}}, .n = n};
    request.arrival -= age;
    request.deadline = deadline;
    request.trace = trace_;
    return service_->Generate(std::move(request), sink_).status();
  }
  static engine::RequestOutput Delta(const std::string& text, bool last) {
    engine::RequestOutput output;
    output.text = text;
    output.token_ids = {65};
    output.queue_seconds = 0.25;
    if (last) output.finish_reason = engine::FinishReason::kStop;
    return output;
  }

  testing::FakeEngine engine_;
  testing::FakeTokenizer tokenizer_;
  std::unique_ptr<GenerationService> service_;
  std::shared_ptr<LockedSink> sink_ = std::make_shared<LockedSink>();
  std::shared_ptr<RequestTrace> trace_ = std::make_shared<RequestTrace>();
};

TEST_F(DeadlineTest, EndsTheRequestAndNothingComesAfter) {
  Build(milliseconds(500));
  ASSERT_TRUE(Generate(steady_clock::time_point::max(), 2).ok());
  ASSERT_TRUE(Eventually([&] { return sink_->deltas().size() == 1; }));
  const engine::RequestOutput last = sink_->deltas()[0];
  EXPECT_EQ(last.finish_reason, engine::FinishReason::kError);
  EXPECT_EQ(last.error.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(last.error.message()), HasSubstr("0.5 s"));
  EXPECT_EQ(engine_.num_cancelled(), 2U);
  EXPECT_THAT(trace_->facts().finish_reasons, ::testing::ElementsAre("deadline"));
  engine_.Emit(0, Delta("late", true));
  engine_.Emit(1, Delta("late", true));
  EXPECT_EQ(sink_->deltas().size(), 1U);
}

TEST_F(DeadlineTest, TheShorterOneHolds) {
  Build(std::chrono::hours(1));
  ASSERT_TRUE(Generate(steady_clock::now() + milliseconds(500)).ok());
  EXPECT_TRUE(Eventually([&] { return sink_->deltas().size() == 1; }));
  Build(milliseconds(500));
  ASSERT_TRUE(Generate(steady_clock::now() + std::chrono::hours(1)).ok());
  EXPECT_TRUE(Eventually([&] { return sink_->deltas().size() == 2; }));
}

TEST_F(DeadlineTest, WhatIsOverBeforeIsNotSubmitted) {
  Build(std::chrono::nanoseconds(0));
  EXPECT_EQ(Generate(steady_clock::now() - milliseconds(1)).code(),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(engine_.num_requests(), 0U);
}

TEST_F(DeadlineTest, TheServersLimitCountsFromTheArrival) {
  constexpr auto kNone = steady_clock::time_point::max();
  Build(std::chrono::hours(1));
  EXPECT_TRUE(Generate(kNone, 1, std::chrono::minutes(59)).ok());
  const absl::Status late = Generate(kNone, 1, std::chrono::minutes(61));
  EXPECT_EQ(late.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(late.message()), HasSubstr("3600 s"));
  EXPECT_EQ(engine_.num_requests(), 1U);
}

TEST_F(DeadlineTest, FinishedRequestsAreForgotten) {
  Build(std::chrono::hours(1));
  ASSERT_TRUE(Generate().ok());
  engine_.Emit(0, Delta("whole", true));
  const std::weak_ptr<LockedSink> watched = sink_;
  EXPECT_EQ(sink_->deltas().size(), 1U);
  sink_.reset();
  EXPECT_TRUE(watched.expired());  // the deadline keeps nothing of it
  EXPECT_EQ(engine_.num_cancelled(), 0U);
}

TEST_F(DeadlineTest, AServiceThatEndsLeavesItsRequests) {
  Build(milliseconds(500));
  ASSERT_TRUE(Generate().ok());
  service_.reset();
  engine_.Emit(0, Delta("", true));  // as an engine does that stops after its service
}

TEST_F(DeadlineTest, ManyDeadlinesAndDeltasAtOnce) {
  Build(milliseconds(2));
  uint64_t num_admitted = 0;  // of others the time is over before; how many is all the same
  for (int i = 0; i < 50; ++i) {
    const absl::Status status = Generate();
    num_admitted += status.ok() ? 1 : 0;
    ASSERT_TRUE(status.ok() || absl::IsDeadlineExceeded(status)) << status;
  }
  std::thread engine([&] {
    for (uint64_t id = 0; id < num_admitted; ++id) engine_.Emit(id, Delta("x", true));
  });
  engine.join();
  EXPECT_TRUE(Eventually([&] { return sink_->deltas().size() >= num_admitted; }));
  EXPECT_EQ(sink_->deltas().size(), num_admitted);
}

TEST_F(DeadlineTest, TheTraceKnowsTheRequest) {
  Build(std::chrono::nanoseconds(0), true);
  ASSERT_TRUE(Generate().ok());
  engine_.Emit(0, Delta("ab", false));
  engine_.Emit(0, Delta("c", true));
  const RequestTrace::Facts facts = trace_->facts();
  EXPECT_EQ(facts.model, "fake");
  EXPECT_EQ(facts.num_prompt_tokens, 7);
  EXPECT_EQ(facts.num_output_tokens, 2);
  EXPECT_EQ(facts.queue_seconds, 0.25);
  EXPECT_TRUE(facts.first_token_seconds.has_value());
  EXPECT_THAT(facts.finish_reasons, ::testing::ElementsAre("stop"));
  EXPECT_EQ(facts.prompt, "<s>prompt");
  EXPECT_EQ(facts.output, "abc");
  const auto sampling = ParseJson(facts.sampling);
  ASSERT_TRUE(sampling.ok()) << facts.sampling;
  EXPECT_EQ((*sampling)["n"], 1);
}

TEST(ParseTimeout, TakesPlainSecondsWithinLimits) {
  EXPECT_EQ(*ParseTimeout("1.5"), milliseconds(1500));
  EXPECT_EQ(*ParseTimeout("0.001"), milliseconds(1));
  EXPECT_EQ(*ParseTimeout("86400"), std::chrono::hours(24));
  for (const char* bad : {"", "0", "-1", "nan", "inf", "1e9", "86401", "0.0001", "1s", " 1", "1 ",
                          "0x1p4", "1e", "--1", "999999999999999999999999999999999999999999"}) {
    const auto timeout = ParseTimeout(bad);
    EXPECT_FALSE(timeout.ok()) << bad;
    EXPECT_THAT(std::string(timeout.status().message()), HasSubstr("86400")) << bad;
  }
}

TEST(AppendTraced, KeepsWholeCharactersUpToItsLimit) {
  std::string traced(kMaxTracedBytes - 1, 'x');
  AppendTraced("\xc3\xa4", &traced);
  EXPECT_EQ(traced.size(), kMaxTracedBytes - 1);
  AppendTraced("y", &traced);
  AppendTraced("z", &traced);
  EXPECT_EQ(traced.size(), kMaxTracedBytes);
}

}  // namespace
}  // namespace nibble::server
