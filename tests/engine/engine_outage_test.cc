// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// An executor that loses its KV cache and comes back, or does not: streams go on with the tokens
// they would have had, and nobody waits for ever.

#include <atomic>
#include <map>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/engine/engine_rig.h"
#include "tests/testing/random.h"

namespace nibble::engine {
namespace {

using testing::Count;
using testing::EngineRig;
using testing::FakeSink;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr int64_t kSecond = 1'000'000'000;

struct Kind {
  std::vector<int32_t> prompt;
  SamplingParams sampling;
};

// Greedy and seeded, with logprobs, penalties, bans until min_tokens, stop strings, long prompts.
std::vector<Kind> Kinds() {
  std::vector<Kind> kinds;
  for (int i = 0; i < 8; ++i) {
    Kind kind{Count(3 + 9 * i % 40, 10 * i), {.max_tokens = 8 + i, .seed = uint64_t(i)}};
    SamplingParams& sampling = kind.sampling;
    sampling.ignore_eos = i % 2 == 0;
    if (i % 3 == 0) sampling.temperature = 0.0F;
    if (i % 3 == 1) sampling.logprobs = 2;
    if (i % 4 == 1) sampling.presence_penalty = 0.5F;
    if (i % 4 == 2) sampling.min_tokens = 6;
    if (i == 5 || i == 6) sampling.stop = {"7 ", "31"};
    kinds.push_back(std::move(kind));
  }
  return kinds;
}

struct Answer {
  std::string text;
  std::vector<int32_t> token_ids;
  size_t num_logprobs = 0;
  FinishReason reason = FinishReason::kError;

  bool operator==(const Answer&) const = default;
};

void SmallSteps(EngineConfig* config, ExecutorLimits* limits) {
  config->max_num_seqs = 5;
  config->max_num_batched_tokens = 16;  // long prompts take several steps
  limits->num_blocks = 60;
}

struct Served {
  std::vector<Answer> answers;
  EngineStats stats;
};

// Where the executor is lost, and how.
struct Losses {
  std::set<int64_t> at_steps;
  std::set<int64_t> at_begins;
  int64_t polls_to_ready = 1;
};

// All kinds at once.
Served Answers(const Losses& losses, int max_steps_in_flight = 1) {
  EngineRig rig(SmallSteps, max_steps_in_flight);
  rig.device().CloseGate();
  {
    const std::lock_guard lock(rig.device().mutex);
    rig.device().lose_at_steps = losses.at_steps;
    rig.device().lose_at_begins = losses.at_begins;
    rig.device().polls_to_ready = losses.polls_to_ready;
  }
  Served run;
  std::vector<std::shared_ptr<FakeSink>> sinks;
  std::vector<std::atomic<size_t>> num_logprobs(Kinds().size());
  for (const Kind& kind : Kinds()) {
    const auto sink = std::make_shared<FakeSink>();
    std::atomic<size_t>& count = num_logprobs[sinks.size()];
    sink->set_callback([&](const RequestOutput& output) { count += output.logprobs.size(); });
    EXPECT_TRUE(rig.engine().Submit({rig.Request(kind.prompt, kind.sampling, sink)}).ok());
    sinks.push_back(sink);
  }
  rig.device().OpenGate();
  for (size_t i = 0; i < sinks.size(); ++i) {
    const RequestOutput last = sinks[i]->WaitForEnd();
    run.answers.push_back({sinks[i]->text(), sinks[i]->token_ids(), 0, *last.finish_reason});
  }
  EXPECT_TRUE(rig.engine().Drain(60 * kSecond).ok());
  for (size_t i = 0; i < sinks.size(); ++i) run.answers[i].num_logprobs = num_logprobs[i];
  rig.ExpectIdle();
  EXPECT_TRUE(rig.engine().Health().ok()) << rig.engine().Health();
  run.stats = rig.engine().Stats();
  return run;
}

TEST(EngineOutageTest, ALossAtAnyStepChangesNoAnswer) {
  const Served whole = Answers({});
  EXPECT_EQ(whole.stats.num_outages, 0);
  for (int64_t step = 0; step < 24; ++step) {
    const Served run = Answers({.at_steps = {step}, .polls_to_ready = 1 + step % 3});
    EXPECT_EQ(run.answers, whole.answers) << "lost at step " << step;
    EXPECT_EQ(run.stats.num_outages, 1);
    EXPECT_GE(run.stats.num_lost_sequences, step > 0 ? 1 : 0);  // before, nobody has anything
  }
}

// With polls_to_ready 0, steps are begun before the loop knows of the loss.
TEST(EngineOutageTest, ALossTakesAllStepsInFlightAndChangesNoAnswer) {
  const Served whole = Answers({});
  for (const int max_steps_in_flight : {2, 3, 5}) {
    EXPECT_EQ(Answers({}, max_steps_in_flight).answers, whole.answers);
    for (int64_t step = 0; step < 24; ++step) {
      Losses losses{.polls_to_ready = step % 3};
      (step % 2 == 0 ? losses.at_steps : losses.at_begins).insert(step);
      const Served run = Answers(losses, max_steps_in_flight);
      EXPECT_EQ(run.answers, whole.answers)
          << "lost at step " << step << " with " << max_steps_in_flight << " in flight";
      EXPECT_EQ(run.stats.num_outages, 1);
    }
  }
}

TEST(EngineOutageTest, RepeatedLossesChangeNoAnswer) {
  const Served whole = Answers({});
  Losses losses{.at_steps = {0, 1, 2, 7, 9, 10, 20, 21, 22, 23, 40}, .polls_to_ready = 2};
  const Served run = Answers(losses);
  EXPECT_EQ(run.answers, whole.answers);
  EXPECT_EQ(run.stats.num_outages, 11);
  losses.at_begins = {1, 5, 12, 13, 30};
  for (const int64_t polls : {0, 2}) {
    losses.polls_to_ready = polls;
    EXPECT_EQ(Answers(losses, 3).answers, whole.answers);
  }
}

TEST(EngineOutageTest, APrefixThatWasCachedIsComputedAgain) {
  EngineRig rig;
  const auto first = rig.Submit(Count(13), {.max_tokens = 3, .seed = 1, .ignore_eos = true});
  first->WaitForEnd();
  rig.device().LoseAtNextStep(1);
  const auto second = rig.Submit(Count(13), {.max_tokens = 3, .seed = 1, .ignore_eos = true});
  second->WaitForEnd();  // the fake model fails the test when it reads what nobody wrote
  EXPECT_EQ(second->token_ids(), first->token_ids());
  const auto third = rig.Submit(Count(13), {.max_tokens = 3, .seed = 1, .ignore_eos = true});
  EXPECT_EQ(third->WaitForEnd().num_cached_tokens, 12);
  EXPECT_EQ(third->token_ids(), first->token_ids());
  ASSERT_TRUE(rig.engine().Drain(kSecond).ok());
  int64_t queries = 0;
  for (const StepStats& step : rig.observer().steps()) queries += step.prefix_cache_queries;
  EXPECT_EQ(queries, 39);  // that of the lost step too
  rig.ExpectIdle();
}

TEST(EngineOutageTest, CancellationsAndArrivalsAreServedMeanwhile) {
  EngineRig rig([](EngineConfig* config, ExecutorLimits*) { config->max_queued_requests = 2; });
  rig.device().CloseGate();
  RequestId id = 0;
  const auto running = rig.Submit(Count(9), {.max_tokens = 6, .seed = 3, .ignore_eos = true});
  rig.device().WaitForSteps(1);
  const auto cancelled = rig.Submit(Count(9), {.max_tokens = 6}, 0, &id);
  rig.device().LoseAtNextStep();
  rig.device().OpenGate();
  rig.device().WaitForPolls(2);
  EXPECT_EQ(rig.engine().Health().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(rig.engine().Health().message()), HasSubstr("rank 1 died in step 1"));
  rig.engine().Cancel(id);
  EXPECT_EQ(cancelled->WaitForEnd().finish_reason, FinishReason::kAbort);
  RequestId waiting_id = 0;
  const auto waiting = rig.Submit(Count(4), {.max_tokens = 2, .ignore_eos = true}, 0, &waiting_id);
  const auto other = rig.Submit(Count(4), {.max_tokens = 2, .ignore_eos = true});
  EXPECT_EQ(rig.engine().Submit({rig.Request(Count(4), {})}).status().code(),
            absl::StatusCode::kResourceExhausted);
  rig.engine().Cancel(waiting_id);
  EXPECT_EQ(waiting->WaitForEnd().finish_reason, FinishReason::kAbort);
  const EngineStats stats = rig.engine().Stats();
  EXPECT_EQ(stats.num_running, 0);
  EXPECT_EQ(stats.kv_blocks_used, 0);
  EXPECT_FALSE(other->ended());
  rig.device().ComeBack();
  EXPECT_EQ(other->WaitForEnd().num_generated_tokens, 2);
  EXPECT_EQ(running->WaitForEnd().num_generated_tokens, 6);
  EXPECT_TRUE(rig.engine().Health().ok());
  rig.ExpectIdle();
}

TEST(EngineOutageTest, AtTheGroupTimeoutRequestsEndAndNewOnesAreRefused) {
  EngineRig rig([](EngineConfig* config, ExecutorLimits*) {
    config->group_timeout_ns = 5 * kSecond;
    config->max_num_seqs = 1;
  });
  rig.device().CloseGate();
  const auto running = rig.Submit(Count(9), {.max_tokens = 6, .ignore_eos = true});
  rig.device().WaitForSteps(1);
  rig.device().LoseAtNextStep();
  rig.device().OpenGate();
  rig.device().WaitForPolls(1);
  rig.device().clock.Advance(2 * kSecond);
  const auto later = rig.Submit(Count(9), {.max_tokens = 6});
  rig.device().WaitForPolls(4);
  EXPECT_FALSE(running->ended());
  rig.device().clock.Advance(3 * kSecond + 1);
  const RequestOutput last = running->WaitForEnd();
  EXPECT_EQ(last.finish_reason, FinishReason::kError);
  EXPECT_EQ(last.error.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(last.error.message()),
              HasSubstr("rank 1 died in step 1; the request waited 5.0 s for it (the group timeout "
                        "is 5 s), try again later"));
  EXPECT_EQ(running->token_ids().size(), 1U);
  EXPECT_THAT(std::string(later->WaitForEnd().error.message()),
              HasSubstr("the request waited 3.0 s"));
  const absl::Status refused = rig.engine().Submit({rig.Request(Count(3), {})}).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(refused.message()), StartsWith("rank 1 died in step 1; the group"));
  rig.ExpectIdle();
  EXPECT_EQ(rig.engine().Health().code(), absl::StatusCode::kUnavailable);

  rig.device().ComeBack();
  while (!rig.engine().Health().ok()) std::this_thread::yield();
  rig.device().clock.Advance(100 * kSecond);  // the outage is over: its time counts for nobody
  EXPECT_EQ(rig.Submit(Count(3), {.max_tokens = 2, .ignore_eos = true})
                ->WaitForEnd()
                .num_generated_tokens,
            2);
  rig.ExpectIdle();
}

// Ready, and lost again before a step is done: the same outage, however often.
TEST(EngineOutageTest, AnExecutorThatNeverGetsThroughAStepIsAwayAllAlong) {
  EngineRig rig(
      [](EngineConfig* config, ExecutorLimits*) { config->group_timeout_ns = 5 * kSecond; });
  {
    const std::lock_guard lock(rig.device().mutex);
    for (int64_t step = 0; step < 100'000; ++step) rig.device().lose_at_steps.insert(step);
    rig.device().polls_to_ready = 1;
    rig.device().step_ns = kSecond / 10;
  }
  const auto sink = rig.Submit(Count(9), {.max_tokens = 6});
  EXPECT_EQ(sink->WaitForEnd().error.code(), absl::StatusCode::kUnavailable);
  EXPECT_GT(rig.engine().Stats().num_outages, 10);
  {
    const std::lock_guard lock(rig.device().mutex);
    rig.device().lose_at_steps.clear();
  }
  while (!rig.engine().Health().ok()) std::this_thread::yield();
  EXPECT_EQ(rig.Submit(Count(9), {.max_tokens = 1})->WaitForEnd().num_generated_tokens, 1);
  rig.ExpectIdle();
}

TEST(EngineOutageTest, ALossWhileIdleIsSeen) {
  EngineRig rig;
  rig.Submit(Count(9), {.max_tokens = 1})->WaitForEnd();
  {
    const std::lock_guard lock(rig.device().mutex);
    rig.device().missing = Unavailable("rank 1 is gone");
    rig.device().polls_to_ready = -1;
  }
  EXPECT_EQ(rig.engine().Health(), Unavailable("rank 1 is gone"));
  rig.device().ComeBack();
  EXPECT_TRUE(rig.engine().Health().ok());
  {
    const std::lock_guard lock(rig.device().mutex);
    rig.device().missing = Internal("rank 1 cannot load");
  }
  EXPECT_EQ(rig.engine().Health(), Internal("rank 1 cannot load"));
}

// The first step after it is told of the loss, and had computed nothing.
TEST(EngineOutageTest, ALossWhileIdleIsNoRequestsLoss) {
  const Served run = Answers({.at_steps = {0}, .polls_to_ready = 0});
  EXPECT_EQ(run.stats.num_outages, 1);
  EXPECT_EQ(run.stats.num_lost_sequences, 0);
}

TEST(EngineOutageTest, AnErrorThatIsFinalEndsTheOutageAndTheService) {
  EngineRig rig;
  rig.device().LoseAtNextStep();
  const auto sink = rig.Submit(Count(9), {.max_tokens = 6});
  rig.device().WaitForPolls(2);
  {
    const std::lock_guard lock(rig.device().mutex);
    rig.device().missing = Internal("rank 1 cannot load");
  }
  const RequestOutput last = sink->WaitForEnd();
  EXPECT_EQ(last.error, Internal("rank 1 cannot load"));
  EXPECT_EQ(rig.engine().Health().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(rig.engine().Submit({rig.Request(Count(3), {})}).status().code(),
            absl::StatusCode::kUnavailable);
  rig.ExpectIdle();
}

TEST(EngineOutageTest, DrainAndStopDuringAnOutage) {
  for (const bool stop : {false, true}) {
    EngineRig rig;
    rig.device().LoseAtNextStep();
    const auto sink = rig.Submit(Count(9), {.max_tokens = 6, .ignore_eos = true});
    rig.device().WaitForPolls(1);
    EXPECT_EQ(rig.engine().Drain(0).code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_EQ(rig.engine().Submit({rig.Request(Count(3), {})}).status().code(),
              absl::StatusCode::kUnavailable);
    if (stop) {
      rig.engine().Stop();
      EXPECT_EQ(sink->WaitForEnd().finish_reason, FinishReason::kAbort);
    } else {
      rig.device().ComeBack();
      EXPECT_TRUE(rig.engine().Drain(60 * kSecond).ok());
      EXPECT_EQ(sink->WaitForEnd().num_generated_tokens, 6);
    }
    rig.ExpectIdle();
  }
}

TEST(EngineOutageTest, BadGroupTimeoutsAreRefused) {
  EngineConfig config;
  config.group_timeout_ns = 0;
  EXPECT_THAT(std::string(config.Validate().message()), HasSubstr("group_timeout_ns is 0"));
}

// Clients come, cancel and go while the executor is lost again and again.
void RandomLossesUnderLoad(int max_steps_in_flight, int64_t polls_to_ready) {
  std::vector<Answer> expected;
  for (const Kind& kind : Kinds()) {
    EngineRig alone;
    const auto sink = alone.Submit(kind.prompt, kind.sampling);
    const RequestOutput last = sink->WaitForEnd();
    expected.push_back({sink->text(), sink->token_ids(), 0, *last.finish_reason});
  }
  EngineRig rig(
      [](EngineConfig* config, ExecutorLimits* limits) {
        SmallSteps(config, limits);
        limits->num_blocks = 30;
      },
      max_steps_in_flight);
  {
    const std::lock_guard lock(rig.device().mutex);
    testing::Random random(5);
    for (int64_t step = 0; step < 20'000; step += random.Int(1, 60)) {
      (random.Int(0, 2) > 0 ? rig.device().lose_at_steps : rig.device().lose_at_begins)
          .insert(step);
    }
    rig.device().polls_to_ready = polls_to_ready;
    rig.device().step_ns = 1000;
  }
  std::atomic<int> num_whole{0};
  std::vector<std::thread> clients;
  for (uint32_t client = 0; client < 4; ++client) {
    clients.emplace_back([&, client] {
      testing::Random random(client);
      for (int n = 0; n < 25; ++n) {
        const auto i = static_cast<size_t>(random.Int(0, 7));
        const Kind kind = Kinds()[i];
        RequestId id = 0;
        const auto sink =
            rig.Submit(kind.prompt, kind.sampling, static_cast<int32_t>(random.Int(0, 2)), &id);
        if (random.Int(0, 4) == 0) {
          sink->WaitForTokens(static_cast<size_t>(random.Int(0, 5)));
          rig.engine().Cancel(id);
        }
        const RequestOutput last = sink->WaitForEnd();
        if (last.finish_reason == FinishReason::kAbort) continue;
        EXPECT_EQ((Answer{sink->text(), sink->token_ids(), 0, *last.finish_reason}), expected[i])
            << "request of kind " << i;
        ++num_whole;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  ASSERT_TRUE(rig.engine().Drain(60 * kSecond).ok());
  rig.ExpectIdle();
  EXPECT_GT(num_whole, 50);
  EXPECT_GT(rig.engine().Stats().num_outages, 5);
  EXPECT_GT(rig.engine().Stats().num_lost_sequences, 5);
}

TEST(EngineOutageTest, RandomLossesUnderLoadLoseNoTokenAndNoBlock) { RandomLossesUnderLoad(1, 1); }

TEST(EngineOutageTest, RandomLossesOfSeveralStepsLoseNoTokenAndNoBlock) {
  RandomLossesUnderLoad(2, 1);
  RandomLossesUnderLoad(3, 0);
}

}  // namespace
}  // namespace nibble::engine
