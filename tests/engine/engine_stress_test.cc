// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Many threads at one engine: no request is lost, none gets another's tokens, no block leaks.

#include <array>
#include <atomic>
#include <map>
#include <thread>

#include "gtest/gtest.h"

#include "tests/engine/engine_rig.h"
#include "tests/testing/random.h"

namespace nibble::engine {
namespace {

using testing::Count;
using testing::EngineRig;
using testing::FakeSink;

constexpr int64_t kSecond = 1'000'000'000;

void TinyPool(EngineConfig* config, ExecutorLimits* limits) {
  limits->num_blocks = 30;  // sequences of up to 16 blocks: a few at a time
  config->max_num_seqs = 8;
  config->max_num_batched_tokens = 16;
}

// Requests that differ in everything a batch could mix up.
struct Kind {
  std::vector<int32_t> prompt;
  SamplingParams sampling;
};

Kind MakeKind(int i) {
  Kind kind{Count(1 + (i * 7) % 30, (i % 3) * 100), {}};
  kind.sampling.max_tokens = 1 + (i * 11) % 30;
  kind.sampling.seed = static_cast<uint64_t>(i);
  kind.sampling.ignore_eos = i % 2 == 0;
  if (i % 4 == 1) kind.sampling.presence_penalty = 0.5F;
  if (i % 5 == 2) kind.sampling.stop = {"7 ", "11"};
  return kind;
}

void ConcurrentClientsWithRandomCancels(int max_steps_in_flight) {
  constexpr int kNumKinds = 20;
  std::vector<std::vector<int32_t>> expected;
  {
    EngineRig alone;
    for (int i = 0; i < kNumKinds; ++i) {
      const Kind kind = MakeKind(i);
      const auto sink = alone.Submit(kind.prompt, kind.sampling);
      sink->WaitForEnd();
      expected.push_back(sink->token_ids());
    }
  }
  EngineRig rig(TinyPool, max_steps_in_flight);
  std::atomic<int> num_whole{0};
  std::vector<std::thread> clients;
  for (uint32_t client = 0; client < 4; ++client) {
    clients.emplace_back([&, client] {
      testing::Random random(client);
      for (int n = 0; n < 60; ++n) {
        const auto i = static_cast<int>(random.Int(0, kNumKinds - 1));
        const Kind kind = MakeKind(i);
        RequestId id = 0;
        const auto sink =
            rig.Submit(kind.prompt, kind.sampling, static_cast<int32_t>(random.Int(0, 2)), &id);
        if (random.Int(0, 3) == 0) {
          sink->WaitForTokens(static_cast<size_t>(random.Int(0, 5)));
          rig.engine().Cancel(id);
        }
        if (random.Int(0, 3) == 0) continue;  // leave it running and send the next
        if (sink->WaitForEnd().finish_reason == FinishReason::kAbort) continue;
        EXPECT_EQ(sink->token_ids(), expected[static_cast<size_t>(i)]) << "request of kind " << i;
        ++num_whole;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  ASSERT_TRUE(rig.engine().Drain(60 * kSecond).ok());
  rig.ExpectIdle();
  EXPECT_GT(num_whole, 50);
  EXPECT_EQ(rig.observer().finished().size(), 240U);
  int64_t num_preemptions = 0;
  for (const StepStats& step : rig.observer().steps()) num_preemptions += step.num_preemptions;
  EXPECT_GT(num_preemptions, 0);
}

TEST(EngineStressTest, ConcurrentClientsWithRandomCancels) {
  for (const int max_steps_in_flight : {1, 2, 3}) {
    ConcurrentClientsWithRandomCancels(max_steps_in_flight);
  }
}

TEST(EngineStressTest, StreamsShareSteps) {
  EngineRig rig;
  rig.device().CloseGate();
  std::vector<std::shared_ptr<FakeSink>> sinks;
  for (int i = 0; i < 64; ++i) {
    sinks.push_back(rig.Submit(Count(4, i), {.max_tokens = 10, .ignore_eos = true}));
  }
  EXPECT_GE(rig.engine().Stats().num_waiting, 48);
  rig.device().OpenGate();
  for (const auto& sink : sinks) EXPECT_EQ(sink->WaitForEnd().num_generated_tokens, 10);
  ASSERT_TRUE(rig.engine().Drain(60 * kSecond).ok());
  EXPECT_EQ(rig.device().max_seqs_in_step, 16);
  // 64 requests of 10 tokens, 16 at a time, need 40 steps and a little for staggered starts.
  EXPECT_LE(rig.engine().Stats().num_steps, 60);
  rig.ExpectIdle();
}

TEST(EngineStressTest, AHundredClientsThatVanishLeaveNothing) {
  EngineRig rig(TinyPool);
  std::vector<RequestId> ids(100);
  std::vector<std::shared_ptr<FakeSink>> sinks;
  for (RequestId& id : ids) {
    sinks.push_back(rig.Submit(Count(10), {.max_tokens = 50, .ignore_eos = true}, 0, &id));
  }
  sinks[0]->WaitForTokens(3);
  for (const RequestId id : ids) rig.engine().Cancel(id);
  for (const auto& sink : sinks) sink->WaitForEnd();
  rig.ExpectIdle();
}

TEST(EngineStressTest, SubmitCancelDrainAndStopMayRace) {
  for (uint32_t round = 0; round < 30; ++round) {
    EngineRig rig(TinyPool, 1 + static_cast<int>(round / 2 % 3));
    std::array<std::vector<std::shared_ptr<FakeSink>>, 2> accepted;
    std::vector<std::thread> threads;
    for (size_t client = 0; client < accepted.size(); ++client) {
      threads.emplace_back([&, client] {
        for (int n = 0; n < 20; ++n) {
          const auto sink = std::make_shared<FakeSink>();
          const auto ids = rig.engine().Submit({rig.Request(Count(5), {.max_tokens = 9}, sink)});
          if (!ids.ok()) continue;
          accepted[client].push_back(sink);
          if (n % 3 == 0) rig.engine().Cancel(ids->front());
          rig.engine().Stats();
        }
      });
    }
    threads.emplace_back([&] { rig.engine().Drain(round % 2 == 0 ? 0 : kSecond).IgnoreError(); });
    threads.emplace_back([&] { rig.engine().Stop(); });
    for (std::thread& thread : threads) thread.join();
    rig.engine().Stop();
    for (const auto& sinks : accepted) {
      for (const auto& sink : sinks) EXPECT_TRUE(sink->ended());
    }
    rig.ExpectIdle();
  }
}

}  // namespace
}  // namespace nibble::engine
