// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/engine.h"

#include <chrono>
#include <limits>
#include <numeric>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/engine/engine_rig.h"

namespace nibble::engine {
namespace {

using testing::Count;
using ::testing::ElementsAre;
using testing::EngineRig;
using testing::FakeSink;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(EngineTest, ARequestGetsItsTokensAndText) {
  EngineRig rig;
  const auto sink = rig.Submit(Count(5), {.max_tokens = 4, .seed = 9});
  const RequestOutput last = sink->WaitForEnd();
  EXPECT_EQ(last.finish_reason, FinishReason::kLength);
  EXPECT_EQ(last.num_prompt_tokens, 5);
  EXPECT_EQ(last.num_generated_tokens, 4);
  ASSERT_EQ(sink->token_ids().size(), 4U);
  std::string text;
  for (const int32_t id : sink->token_ids()) text += std::to_string(id) + " ";
  EXPECT_EQ(sink->text(), text);
  rig.ExpectIdle();
}

TEST(EngineTest, TheSameSeedGivesTheSameTokensInAnyBatch) {
  EngineRig rig;
  const SamplingParams sampling{.max_tokens = 12, .seed = 5};
  const auto alone = rig.Submit(Count(9), sampling);
  alone->WaitForEnd();
  std::vector<std::shared_ptr<FakeSink>> others;
  for (int i = 0; i < 10; ++i) {
    others.push_back(rig.Submit(Count(3 + i, 40 + i), {.max_tokens = 15}));
  }
  const auto among = rig.Submit(Count(9), sampling);
  among->WaitForEnd();
  EXPECT_EQ(among->token_ids(), alone->token_ids());
  for (const auto& sink : others) sink->WaitForEnd();
  rig.ExpectIdle();
}

TEST(EngineTest, DrawnSeedsFollowFromTheConfig) {
  std::vector<std::vector<int32_t>> first;
  for (int round = 0; round < 2; ++round) {
    EngineRig rig;
    std::vector<std::vector<int32_t>> tokens;
    for (int i = 0; i < 3; ++i) {
      const auto sink = rig.Submit(Count(4), {.max_tokens = 6});
      sink->WaitForEnd();
      tokens.push_back(sink->token_ids());
    }
    EXPECT_NE(tokens[0], tokens[1]);
    EXPECT_NE(tokens[1], tokens[2]);
    if (round == 0) first = tokens;
    EXPECT_EQ(tokens, first);
  }
  EngineRig rig([](EngineConfig* config, ExecutorLimits*) { config->seed = 1; });
  const auto sink = rig.Submit(Count(4), {.max_tokens = 6});
  sink->WaitForEnd();
  EXPECT_NE(sink->token_ids(), first[0]);
}

TEST(EngineTest, BadRequestsAreRefusedWithValueAndLimit) {
  EngineRig rig;
  const auto refusal = [&](std::vector<int32_t> prompt, SamplingParams sampling) {
    const auto ids = rig.engine().Submit({rig.Request(std::move(prompt), std::move(sampling))});
    EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(ids.status().message());
  };
  EXPECT_THAT(refusal({}, {}), HasSubstr("the prompt is empty"));
  EXPECT_THAT(refusal(Count(64), {}), HasSubstr("the prompt has 64 tokens, the limit is 63"));
  EXPECT_THAT(refusal({1, 500}, {}), HasSubstr("prompt token 1 has id 500, must be in [0, 500)"));
  EXPECT_THAT(refusal({-1}, {}), HasSubstr("prompt token 0 has id -1"));
  EXPECT_THAT(refusal(Count(60), {.max_tokens = 5}),
              HasSubstr("max_tokens is 5 and the prompt has 60 tokens: 65 in all, the context is "
                        "64 tokens"));
  EXPECT_THAT(refusal(Count(60), {.max_tokens = kFillContext, .min_tokens = 5}),
              HasSubstr("min_tokens is 5, the limit is 4"));
  EXPECT_THAT(refusal({1}, {.max_tokens = 0, .top_p = 2.0F}), HasSubstr("max_tokens is 0"));
  EXPECT_EQ(rig.engine().Submit({EngineRequest{.prompt_token_ids = {1}}}).status().code(),
            absl::StatusCode::kInvalidArgument);
  rig.ExpectIdle();
}

TEST(EngineTest, MaxTokensLeftOpenFillsTheContext) {
  EngineRig rig;
  const auto sink = rig.Submit(Count(60), {.max_tokens = kFillContext, .ignore_eos = true});
  EXPECT_EQ(sink->WaitForEnd().num_generated_tokens, 4);
  EXPECT_EQ(rig.Submit(Count(63), {.max_tokens = 1})->WaitForEnd().num_generated_tokens, 1);
}

TEST(EngineTest, TheContextIsNoLongerThanTheCache) {
  EngineRig rig([](EngineConfig*, ExecutorLimits* limits) { limits->num_blocks = 5; });
  EXPECT_EQ(rig.engine().config().sampling_limits.max_model_len, 20);
  EXPECT_THAT(
      std::string(
          rig.engine().Submit({rig.Request(Count(20), {.max_tokens = 1})}).status().message()),
      HasSubstr("the limit is 19"));
  const auto sink = rig.Submit(Count(19), {.max_tokens = 1});
  EXPECT_EQ(sink->WaitForEnd().finish_reason, FinishReason::kLength);
}

TEST(EngineTest, AllOrNoneAndTheQueueIsBounded) {
  EngineRig rig([](EngineConfig* config, ExecutorLimits*) {
    config->max_num_seqs = 1;
    config->max_queued_requests = 2;
  });
  rig.device().CloseGate();
  const auto running = rig.Submit(Count(3), {.max_tokens = 2});
  rig.device().WaitForSteps(1);
  const auto first = rig.Submit(Count(3), {.max_tokens = 1});
  const auto refused_sink = std::make_shared<FakeSink>();
  std::vector<EngineRequest> two;
  for (int i = 0; i < 2; ++i) two.push_back(rig.Request(Count(3), {.max_tokens = 1}, refused_sink));
  const auto refused = rig.engine().Submit(two);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr("1 requests are waiting, 2 more exceed the limit of 2"));
  two[1].prompt_token_ids.clear();
  EXPECT_THAT(std::string(rig.engine().Submit(two).status().message()), HasSubstr("request 1: "));
  const auto second = rig.Submit(Count(3), {.max_tokens = 1});
  EXPECT_EQ(rig.engine().Stats().num_waiting, 2);
  rig.device().OpenGate();
  for (const auto& sink : {running, first, second}) sink->WaitForEnd();
  EXPECT_THAT(refused_sink->token_ids(), IsEmpty());
  EXPECT_FALSE(refused_sink->ended());
  rig.Submit(Count(3), {.max_tokens = 1})->WaitForEnd();  // there is room again
  rig.ExpectIdle();
}

TEST(EngineTest, CancelFreesARunningRequestBeforeTheNextStep) {
  EngineRig rig;
  rig.device().CloseGate();
  RequestId id = 0;
  const auto sink = rig.Submit(Count(20), {.max_tokens = 40, .ignore_eos = true}, 0, &id);
  rig.device().WaitForSteps(1);
  EXPECT_EQ(rig.engine().Stats().kv_blocks_used, 5);
  rig.engine().Cancel(id);
  rig.engine().Cancel(id);
  rig.engine().Cancel(id + 1000);
  rig.device().OpenGate();
  EXPECT_EQ(sink->WaitForEnd().finish_reason, FinishReason::kAbort);
  EXPECT_EQ(sink->token_ids().size(), 1U);  // of the step that was under way
  EXPECT_EQ(rig.engine().Stats().kv_blocks_used, 0);
  EXPECT_EQ(rig.engine().Stats().num_steps, 1);
  rig.ExpectIdle();
}

TEST(EngineTest, CancelComesAfterTheTokensOfTheStepUnderWay) {
  EngineRig rig;
  rig.device().CloseGate();
  RequestId id = 0;
  const auto sink = rig.Submit(Count(3), {.max_tokens = 1, .ignore_eos = true}, 0, &id);
  rig.device().WaitForSteps(1);
  rig.engine().Cancel(id);
  rig.device().OpenGate();
  const RequestOutput last = sink->WaitForEnd();
  EXPECT_EQ(last.finish_reason, FinishReason::kLength);  // it was complete already
  EXPECT_EQ(last.num_generated_tokens, 1);
  ASSERT_TRUE(rig.engine().Drain(1'000'000'000).ok());
  EXPECT_EQ(rig.observer().steps()[0].num_generated_tokens, 1);
  EXPECT_EQ(rig.observer().finished()[0].num_generated_tokens, 1);
}

TEST(EngineTest, CancelTakesAWaitingRequestOutOfTheQueue) {
  EngineRig rig([](EngineConfig* config, ExecutorLimits*) {
    config->max_num_seqs = 1;
    config->max_queued_requests = 1;
  });
  rig.device().CloseGate();
  const auto running = rig.Submit(Count(3), {.max_tokens = 3, .ignore_eos = true});
  rig.device().WaitForSteps(1);
  RequestId id = 0;
  const auto waiting = rig.Submit(Count(3), {}, 0, &id);
  rig.engine().Cancel(id);
  rig.device().OpenGate();
  EXPECT_EQ(waiting->WaitForEnd().finish_reason, FinishReason::kAbort);
  EXPECT_EQ(running->WaitForEnd().finish_reason, FinishReason::kLength);
  rig.Submit(Count(3), {.max_tokens = 1})->WaitForEnd();
  rig.ExpectIdle();
}

TEST(EngineTest, ASinkMayCancelItsOwnRequest) {
  EngineRig rig;
  const auto sink = std::make_shared<FakeSink>();
  std::atomic<RequestId> id{0};
  sink->set_callback([&](const RequestOutput& output) {
    if (output.num_generated_tokens == 3) rig.engine().Cancel(id);
  });
  rig.device().CloseGate();
  auto request = rig.Request(Count(3), {.max_tokens = 50, .ignore_eos = true}, sink);
  id = rig.engine().Submit({request})->front();
  rig.device().OpenGate();
  EXPECT_EQ(sink->WaitForEnd().finish_reason, FinishReason::kAbort);
  EXPECT_LE(sink->token_ids().size(), 4U);  // one more step was under way
  rig.ExpectIdle();
}

TEST(EngineTest, AStopStringEndsTheSequenceThoughAStepIsUnderWay) {
  EngineRig rig;
  const SamplingParams sampling{.max_tokens = 20, .seed = 3, .ignore_eos = true};
  const auto whole = rig.Submit(Count(3), sampling);
  whole->WaitForEnd();
  SamplingParams stopped = sampling;
  // The fifth token and the blank before it.
  stopped.stop = {" " + std::to_string(whole->token_ids()[4]) + " "};
  const auto sink = rig.Submit(Count(3), stopped);
  const RequestOutput last = sink->WaitForEnd();
  EXPECT_EQ(last.finish_reason, FinishReason::kStop);
  EXPECT_EQ(std::get<std::string>(last.stop_reason), stopped.stop[0]);
  EXPECT_EQ(last.num_generated_tokens, 5);
  EXPECT_EQ(sink->text(), whole->text().substr(0, whole->text().find(stopped.stop[0])));
  rig.ExpectIdle();
}

TEST(EngineTest, ARowWithoutAFiniteLogitEndsItsRequestOnly) {
  EngineRig rig;
  rig.device().nan_at_step = 2;
  rig.device().CloseGate();
  std::vector<EngineRequest> requests;
  const auto faulty = std::make_shared<FakeSink>();
  const auto sound = std::make_shared<FakeSink>();
  const SamplingParams sampling{.max_tokens = 9, .ignore_eos = true};
  requests.push_back(rig.Request(Count(5), sampling, faulty));
  requests.push_back(rig.Request(Count(5, 50), sampling, sound));
  ASSERT_TRUE(rig.engine().Submit(std::move(requests)).ok());
  rig.device().OpenGate();
  const RequestOutput last = faulty->WaitForEnd();
  EXPECT_EQ(last.finish_reason, FinishReason::kError);
  EXPECT_EQ(last.error.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(last.error.message()),
              HasSubstr("no finite logit for token 3 of the answer"));
  EXPECT_EQ(faulty->token_ids().size(), 2U);
  EXPECT_EQ(sound->WaitForEnd().finish_reason, FinishReason::kLength);
  EXPECT_EQ(sound->token_ids().size(), 9U);
  EXPECT_TRUE(rig.engine().Health().ok());
  ASSERT_TRUE(rig.engine().Drain(1'000'000'000).ok());
  EXPECT_EQ(rig.observer().steps()[2].num_generated_tokens, 1);
  rig.ExpectIdle();
}

TEST(EngineTest, APromptWithoutAFiniteLogitIsNotCached) {
  EngineRig rig;
  rig.device().nan_at_step = 0;
  const auto faulty = rig.Submit(Count(13), {.max_tokens = 3});
  EXPECT_EQ(faulty->WaitForEnd().finish_reason, FinishReason::kError);
  const RequestOutput again = rig.Submit(Count(13), {.max_tokens = 3})->WaitForEnd();
  EXPECT_EQ(again.num_cached_tokens, 0);
  EXPECT_NE(again.finish_reason, FinishReason::kError);
  ASSERT_TRUE(rig.engine().Drain(1'000'000'000).ok());
  EXPECT_EQ(rig.observer().finished()[0].reason, FinishReason::kError);
}

// Step `at` fails in one of three ways, with requests running and waiting.
void ExpectAFailedStepEndsAll(int kind, int64_t at, EngineRig* rig) {
  int64_t& fault = kind == 0   ? rig->device().fail_at_step
                   : kind == 1 ? rig->device().wrong_id_at_step
                               : rig->device().too_few_at_step;
  fault = at;
  rig->device().CloseGate();
  std::vector<std::shared_ptr<FakeSink>> sinks;
  for (int i = 0; i < 6; ++i) {
    sinks.push_back(rig->Submit(Count(3), {.max_tokens = 20, .ignore_eos = true}));
  }
  rig->device().OpenGate();
  for (const auto& sink : sinks) {
    const RequestOutput last = sink->WaitForEnd();
    EXPECT_EQ(last.finish_reason, FinishReason::kError);
    EXPECT_THAT(std::string(last.error.message()),
                HasSubstr(kind == 0   ? fmt::format("burnt down in step {}", at)
                          : kind == 1 ? "returned token id 500"
                                      : "tokens, the plan asked for"));
  }
  // Tokens of the steps before were handed out.
  if (rig->device().max_steps_in_flight == 1) {
    EXPECT_EQ(static_cast<int64_t>(sinks[0]->token_ids().size()), at);
  }
  EXPECT_FALSE(rig->engine().Health().ok());
  EXPECT_EQ(rig->engine().Submit({rig->Request(Count(3), {})}).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_TRUE(rig->engine().Drain(60'000'000'000).ok());
  rig->ExpectIdle();
}

TEST(EngineTest, AFailedStepEndsEveryRequestAndTheService) {
  for (int kind = 0; kind < 3; ++kind) {
    EngineRig rig([](EngineConfig* config, ExecutorLimits*) { config->max_num_seqs = 2; });
    ExpectAFailedStepEndsAll(kind, 2, &rig);
  }
}

TEST(EngineTest, AFailedStepEndsTheStepsUnderWayToo) {
  for (int kind = 0; kind < 3; ++kind) {
    EngineRig rig(
        [](EngineConfig* config, ExecutorLimits*) {
          config->max_num_seqs = 4;
          config->max_num_batched_tokens = 8;
        },
        3);
    ExpectAFailedStepEndsAll(kind, 4, &rig);
  }
}

TEST(EngineTest, DrainLetsRequestsFinishAndRefusesNewOnes) {
  EngineRig rig;
  rig.device().CloseGate();
  const auto sink = rig.Submit(Count(3), {.max_tokens = 5, .ignore_eos = true});
  EXPECT_EQ(rig.engine().Drain(0).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(rig.engine().Drain(std::numeric_limits<int64_t>::min()).code(),
            absl::StatusCode::kDeadlineExceeded);
  const auto refused = rig.engine().Submit({rig.Request(Count(3), {})});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnavailable);
  rig.device().OpenGate();
  EXPECT_TRUE(rig.engine().Drain(std::numeric_limits<int64_t>::max()).ok());
  EXPECT_TRUE(sink->ended());
  EXPECT_EQ(sink->token_ids().size(), 5U);
  EXPECT_TRUE(rig.engine().Health().ok());
  rig.ExpectIdle();
}

TEST(EngineTest, StopAbortsWhatIsLeft) {
  EngineRig rig([](EngineConfig* config, ExecutorLimits*) { config->max_num_seqs = 1; });
  const auto running = rig.Submit(Count(3), {.max_tokens = 60, .ignore_eos = true});
  const auto waiting = rig.Submit(Count(3), {.max_tokens = 60, .ignore_eos = true});
  rig.engine().Stop();
  rig.engine().Stop();
  EXPECT_EQ(running->WaitForEnd().finish_reason, FinishReason::kAbort);
  EXPECT_EQ(waiting->WaitForEnd().finish_reason, FinishReason::kAbort);
  EXPECT_EQ(rig.engine().Submit({rig.Request(Count(3), {})}).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_TRUE(rig.engine().Drain(0).ok());
  rig.ExpectIdle();
}

TEST(EngineTest, BadConfigsAreRefused) {
  EngineConfig config;
  config.max_num_seqs = 0;
  config.max_num_batched_tokens = -1;
  config.max_queued_requests = 0;
  const std::string message(config.Validate().message());
  EXPECT_THAT(message, HasSubstr("max_num_seqs is 0, must be in [1, 4096]"));
  EXPECT_THAT(message, HasSubstr("max_num_batched_tokens is -1"));
  EXPECT_THAT(message, HasSubstr("max_queued_requests is 0"));
  EXPECT_THAT(EngineRig::CreateError([](EngineConfig* c, ExecutorLimits*) {
                c->enable_chunked_prefill = false;
                c->max_num_batched_tokens = 32;
              }),
              HasSubstr("max_num_batched_tokens is 32, must be at least the context of 64"));
  EXPECT_THAT(
      EngineRig::CreateError([](EngineConfig* c, ExecutorLimits*) { c->eos_token_ids = {500}; }),
      HasSubstr("an eos_token_id is 500, must be in [0, 499]"));
  EXPECT_THAT(EngineRig::CreateError([](EngineConfig*, ExecutorLimits* limits) {
                limits->num_blocks = std::numeric_limits<int32_t>::max();
              }),
              HasSubstr("the KV cache's size in tokens"));
}

}  // namespace
}  // namespace nibble::engine
