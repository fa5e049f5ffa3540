// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Real ranks (threads of this process, shared memory between them) behind a real driver: the same
// tokens as one rank alone, whatever happens to them.

#include "engine/exec/rank_server.h"

#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/engine.h"
#include "engine/exec/local_executor.h"
#include "engine/exec/rank_group.h"
#include "tests/engine/engine_fakes.h"
#include "tests/engine/exec/thread_hub.h"
#include "tests/engine/model/model_runner.h"
#include "tests/engine/output/fake_tokenizer.h"
#include "tests/testing/random.h"

namespace nibble::engine {
namespace {

using std::chrono::milliseconds;
using testing::FakeSink;
using testing::FakeTokenizer;
using ::testing::HasSubstr;
using testing::ThreadHub;

const std::string kModelDir = NIBBLE_SOURCE_DIR "/tests/fixtures/models/llama";
constexpr int64_t kVocabSize = 128;
constexpr int64_t kHiddenSize = 56;
constexpr LocalExecutorOptions kSizes{.block_size = 4,
                                      .num_blocks = 40,
                                      .max_model_len = 64,
                                      .max_num_batched_tokens = 32,
                                      .max_num_seqs = 8};

std::string GroupId(const char* name) { return fmt::format("test-{}-{}", getpid(), name); }

// What is left of a group in shared memory.
int NumLeftovers(const std::string& group_id) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
    if (entry.path().string().find(group_id) != std::string::npos) ++count;
  }
  return count;
}

struct Ranks {
  std::unique_ptr<ThreadHub> hub;
  RankGroupOptions options;
};

Ranks MakeRanks(int size, const char* name, const std::string& model_dir = kModelDir) {
  Ranks ranks;
  ranks.hub =
      std::make_unique<ThreadHub>(size, [size, model_dir](int rank, comm::FrameChannel* channel) {
        ThreadPool pool(1);
        RankServerOptions options{.model_dir = model_dir, .block_size = kSizes.block_size};
        options.load.tensor_parallel = {.rank = rank, .size = size};
        options.limits = {.max_tokens = kSizes.max_num_batched_tokens,
                          .max_positions = kSizes.max_model_len};
        RunRankServer(channel, options, &pool).IgnoreError();
      });
  ranks.options.node_of_rank.assign(static_cast<size_t>(size), 0);
  ranks.options.bind_address_of_node = {"127.0.0.1"};
  ranks.options.group_id = GroupId(name);
  ranks.options.vocab_size = kVocabSize;
  ranks.options.row_size = kHiddenSize;
  ranks.options.all_reduce.mode = comm::AllReduceOptions::Mode::kNone;
  ranks.options.rank_timeout = milliseconds(20'000);
  return ranks;
}

absl::StatusOr<std::unique_ptr<RankGroup>> StartGroup(Ranks ranks) {
  return RankGroup::Start(
      std::move(ranks.hub), ranks.options,
      [](const std::vector<RankDescription>& descriptions) -> absl::StatusOr<LocalExecutorOptions> {
        for (const RankDescription& description : descriptions) {
          EXPECT_GT(description.weight_bytes, 0);
          EXPECT_GT(description.kv_block_bytes, 0);
          EXPECT_GT(description.available_bytes, 0);
          EXPECT_FALSE(description.quantization_name.empty());
        }
        return kSizes;
      },
      nullptr, {});
}

// Requests that cover greedy and seeded sampling, logprobs and penalties.
std::vector<EngineRequest> Requests(std::vector<std::shared_ptr<FakeSink>>* sinks) {
  std::vector<EngineRequest> requests;
  for (int i = 0; i < 6; ++i) {
    sinks->push_back(std::make_shared<FakeSink>());
    std::vector<int32_t> prompt;
    for (int t = 0; t < 3 + 4 * i; ++t) prompt.push_back((7 * i + 3 * t) % 120 + 3);
    SamplingParams sampling{.max_tokens = 20, .seed = uint64_t(i), .ignore_eos = true};
    if (i % 2 == 0) sampling.temperature = 0.0F;
    if (i % 3 == 1) sampling.frequency_penalty = 0.5F;
    if (i == 2) sampling.logprobs = 3;
    requests.push_back({.prompt_token_ids = prompt, .sampling = sampling, .sink = sinks->back()});
  }
  return requests;
}

// `meanwhile` runs while the answers stream.
std::vector<std::vector<int32_t>> Answers(std::unique_ptr<Executor> executor,
                                          const std::function<void(Engine*)>& meanwhile = {}) {
  const FakeTokenizer tokenizer = FakeTokenizer::Numbers(kVocabSize);
  EngineConfig config{.max_num_seqs = kSizes.max_num_seqs,
                      .max_num_batched_tokens = kSizes.max_num_batched_tokens};
  auto engine = Engine::Create(config, std::move(executor), &tokenizer, nullptr);
  EXPECT_TRUE(engine.ok()) << engine.status();
  std::vector<std::shared_ptr<FakeSink>> sinks;
  EXPECT_TRUE((*engine)->Submit(Requests(&sinks)).ok());
  if (meanwhile) meanwhile(engine->get());
  std::vector<std::vector<int32_t>> answers;
  for (const auto& sink : sinks) {
    const RequestOutput last = sink->WaitForEnd();
    EXPECT_EQ(last.finish_reason, FinishReason::kLength) << last.error;
    answers.push_back(sink->token_ids());
  }
  EXPECT_EQ((*engine)->Stats().kv_blocks_used, 0);
  return answers;
}

std::vector<std::vector<int32_t>> AnswersOfOneRank() {
  ThreadPool pool(1);
  auto executor = LocalExecutor::Create(testing::LoadOrFail(kModelDir, {}, &pool), kSizes, &pool);
  EXPECT_TRUE(executor.ok()) << executor.status();
  return Answers(*std::move(executor));
}

TEST(RankServerTest, RanksGiveTheTokensOfOne) {
  const auto expected = AnswersOfOneRank();
  for (const int size : {1, 2}) {
    auto group = StartGroup(MakeRanks(size, "same"));
    ASSERT_TRUE(group.ok()) << group.status();
    EXPECT_EQ((*group)->limits().num_blocks, 40);
    EXPECT_EQ((*group)->limits().vocab_size, kVocabSize);
    const auto empty = (*group)->Execute({});
    ASSERT_TRUE(empty.ok()) << empty.status();
    EXPECT_EQ(Answers(*std::move(group)), expected) << size << " ranks";
    EXPECT_EQ(NumLeftovers(GroupId("same")), 0);
  }
}

TEST(RankServerTest, RanksThatDieChangeNoToken) {
  const auto expected = AnswersOfOneRank();
  testing::Random random(1);
  for (int round = 0; round < 5; ++round) {
    Ranks ranks = MakeRanks(2, "die");
    ThreadHub* hub = ranks.hub.get();
    auto group = StartGroup(std::move(ranks));
    ASSERT_TRUE(group.ok()) << group.status();
    const auto answers = Answers(*std::move(group), [&](Engine* engine) {
      for (int n = 0; n < 3; ++n) {
        const int64_t step = engine->Stats().num_steps + random.Int(1, 4);
        const auto patience = std::chrono::steady_clock::now() + std::chrono::seconds(30);
        while (engine->Stats().num_steps < step && engine->Stats().num_running > 0 &&
               std::chrono::steady_clock::now() < patience) {
          std::this_thread::sleep_for(std::chrono::microseconds(100));
        }
        hub->Kill(static_cast<int>(random.Int(0, 1)));
      }
    });
    EXPECT_EQ(answers, expected) << "round " << round;
    EXPECT_EQ(NumLeftovers(GroupId("die")), 0);
  }
}

TEST(RankServerTest, AFrozenChannelIsReplaced) {
  const auto expected = AnswersOfOneRank();
  Ranks ranks = MakeRanks(2, "freeze");
  ranks.options.rank_timeout = milliseconds(500);
  ThreadHub* hub = ranks.hub.get();
  auto group = StartGroup(std::move(ranks));
  ASSERT_TRUE(group.ok()) << group.status();
  const auto answers = Answers(*std::move(group), [&](Engine*) { hub->Freeze(0); });
  EXPECT_EQ(answers, expected);
}

TEST(RankServerTest, AModelThatIsNotThereIsToldByName) {
  const auto group = StartGroup(MakeRanks(2, "missing", "/nonexistent"));
  ASSERT_FALSE(group.ok());
  EXPECT_THAT(std::string(group.status().message()), HasSubstr("/nonexistent"));
  EXPECT_THAT(std::string(group.status().message()), HasSubstr("rank "));
}

TEST(RankServerTest, SizesThatDoNotFitAreToldByTheRank) {
  Ranks ranks = MakeRanks(1, "sizes");
  const auto group = RankGroup::Start(
      std::move(ranks.hub), ranks.options,
      [](const std::vector<RankDescription>&) -> absl::StatusOr<LocalExecutorOptions> {
        LocalExecutorOptions sizes = kSizes;
        sizes.max_model_len = 129;
        return sizes;
      },
      nullptr, {});
  EXPECT_THAT(std::string(group.status().message()),
              HasSubstr("max_model_len is 129, the limits are 1 and 128"));
}

// A rank by itself, its driver played by the test.
class OneRankTest : public ::testing::Test {
 protected:
  OneRankTest() {
    thread_ = std::thread([this] {
      ThreadPool pool(1);
      RankServerOptions options{.model_dir = kModelDir, .block_size = kSizes.block_size};
      options.limits = {.max_tokens = 32, .max_positions = 64};
      end_ = RunRankServer(&channel_, options, &pool);
      channel_.Close("exited");
    });
  }
  ~OneRankTest() override { End("the test is over"); }

  void End(const char* why) {
    channel_.Close(why);
    if (thread_.joinable()) thread_.join();
  }
  template <typename Payload>
  void Say(const Payload& payload) {
    channel_.SendToRank(MakeFrame(payload));
  }
  // The next frame but for progress.
  comm::Frame Hear() {
    for (;;) {
      auto frame = channel_.ReceiveFromRank();
      if (!frame.ok()) return {};
      if (frame->type != static_cast<uint32_t>(RankMessage::kProgress)) return *std::move(frame);
    }
  }
  void ExpectHear(RankMessage type) { EXPECT_EQ(Hear().type, static_cast<uint32_t>(type)); }
  PreparePayload Place(uint64_t generation) {
    return {.place = {.node_of_rank = {0},
                      .group_id = GroupId("one"),
                      .generation = generation,
                      .bind_address = "127.0.0.1"},
            .clean_from = 1};
  }
  // Up to a connected group of this rank alone.
  void Join(uint64_t generation) {
    Say(Place(generation));
    const comm::Frame prepared = Hear();
    ASSERT_EQ(prepared.type, static_cast<uint32_t>(RankMessage::kPrepared));
    Say(ConnectPayload{.generation = generation,
                       .addresses = {PreparedPayload::Decode(prepared.payload)->address},
                       .all_reduce = {.mode = comm::AllReduceOptions::Mode::kNone},
                       .row_size = kHiddenSize});
    ExpectHear(RankMessage::kConnected);
  }

  testing::ThreadChannel channel_;
  absl::Status end_;
  std::thread thread_;
};

TEST_F(OneRankTest, SaysWhatItIsToEveryHelloAndAllocatesOnce) {
  for (int i = 0; i < 2; ++i) {
    channel_.SendToRank(MakeFrame(RankMessage::kHello));
    const auto loaded = LoadedPayload::Decode(Hear().payload);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_EQ(loaded->size, 1);
    EXPECT_EQ(loaded->vocab_size, kVocabSize);
    EXPECT_EQ(loaded->hidden_size, kHiddenSize);
    Say(AllocatePayload{.options = kSizes});
    ExpectHear(RankMessage::kAllocated);
  }
  channel_.SendToRank(MakeFrame(RankMessage::kPing, PingPayload{5}.Encode()));
  EXPECT_EQ(PingPayload::Decode(Hear().payload)->number, 5U);
  channel_.SendToRank(MakeFrame(RankMessage::kExit));
  thread_.join();
  EXPECT_TRUE(end_.ok()) << end_;
}

TEST_F(OneRankTest, StepsBelongToTheirGeneration) {
  Say(AllocatePayload{.options = kSizes});
  ExpectHear(RankMessage::kAllocated);
  Join(3);
  Say(StepPayload{.generation = 3, .number = 1});
  EXPECT_TRUE(StepDonePayload::Decode(Hear().payload)->status.ok());
  Say(StepPayload{.generation = 2, .number = 2});
  EXPECT_EQ(StepDonePayload::Decode(Hear().payload)->status.code(), absl::StatusCode::kAborted);
  Say(AbortPayload{.generation = 2, .reason = "an old one"});
  Say(StepPayload{.generation = 3, .number = 3});
  EXPECT_TRUE(StepDonePayload::Decode(Hear().payload)->status.ok());
  Say(AbortPayload{.generation = 3, .reason = "rank 1 died"});
  Say(StepPayload{.generation = 3, .number = 4});
  const auto done = StepDonePayload::Decode(Hear().payload);
  EXPECT_EQ(done->status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(done->number, 4U);
  Join(4);  // weights and KV memory are still there
  StepPayload bad{.generation = 4, .number = 5};
  bad.plan.token_ids = {1};
  Say(bad);
  EXPECT_EQ(StepDonePayload::Decode(Hear().payload)->status.code(),
            absl::StatusCode::kInvalidArgument);
  End("gone");
  EXPECT_EQ(end_.code(), absl::StatusCode::kUnavailable) << end_;
  EXPECT_EQ(NumLeftovers(GroupId("one")), 0);
}

TEST_F(OneRankTest, APlaceThatMakesNoSenseFailsTheGenerationOnly) {
  PreparePayload place = Place(1);
  place.place.group_id = "not/a/name";
  Say(place);
  const auto failed = GenerationFailedPayload::Decode(Hear().payload);
  ASSERT_TRUE(failed.ok()) << failed.status();
  EXPECT_EQ(failed->generation, 1U);
  Say(ConnectPayload{.generation = 1, .addresses = {"x"}});
  ExpectHear(RankMessage::kGenerationFailed);
  Join(2);
}

TEST_F(OneRankTest, ADriverThatTalksNonsenseIsTold) {
  channel_.SendToRank({.type = 4711, .payload = ""});
  const auto failed = FailedPayload::Decode(Hear().payload);
  ASSERT_TRUE(failed.ok()) << failed.status();
  EXPECT_THAT(std::string(failed->status.message()), HasSubstr("type 4711"));
  End("gone");
  EXPECT_EQ(end_.code(), absl::StatusCode::kInvalidArgument) << end_;
}

}  // namespace
}  // namespace nibble::engine
