// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Real ranks (threads of this process, shared memory between them) behind a real driver: the same
// tokens as one rank alone, whatever happens to them.

#include "engine/exec/rank_server.h"

#include <atomic>
#include <chrono>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/exec/rank_group.h"
#include "tests/engine/exec/losable_device.h"
#include "tests/engine/exec/rank_rig.h"
#include "tests/engine/exec/thread_hub.h"
#include "tests/testing/random.h"

namespace nibble::engine {
namespace {

using std::chrono::milliseconds;
using testing::Answers;
using testing::AnswersOfOneRank;
using testing::GroupId;
using ::testing::HasSubstr;
using testing::kHiddenSize;
using testing::kModelDir;
using testing::kSizes;
using testing::kVocabSize;
using testing::NumLeftovers;
using testing::ThreadHub;

struct Ranks {
  std::unique_ptr<ThreadHub> hub;
  RankGroupOptions options;
};

Ranks MakeRanks(int size, const char* name, const std::string& model_dir = kModelDir,
                int num_stages = 1, std::shared_ptr<const ModelDevice> device = nullptr) {
  Ranks ranks{.options = testing::GroupOptions(size, name, num_stages)};
  ranks.hub = std::make_unique<ThreadHub>(
      size, [size, model_dir, num_stages, device](int rank, comm::FrameChannel* channel) {
        ThreadPool pool(1);
        RankServerOptions options{.model_dir = model_dir, .block_size = kSizes.block_size};
        options.load.place = testing::PlaceOf(rank, size, num_stages);
        options.load.device = device;
        options.limits = {.max_tokens = kSizes.max_num_batched_tokens,
                          .max_positions = kSizes.max_model_len,
                          .max_samples = kSizes.max_num_seqs};
        RunRankServer(channel, options, &pool).IgnoreError();
      });
  return ranks;
}

absl::StatusOr<std::unique_ptr<RankGroup>> StartGroup(Ranks ranks) {
  return testing::StartGroup(std::move(ranks.hub), ranks.options);
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

// Stages, and stages of several ranks; on one host and on two.
TEST(RankServerTest, StagesGiveTheTokensOfOne) {
  const auto expected = AnswersOfOneRank();
  struct Shape {
    std::vector<int> node_of_rank;
    int num_stages;
  };
  for (const auto& [nodes, num_stages] :
       {Shape{{0, 0}, 2}, Shape{{0, 0, 0, 0}, 2}, Shape{{0, 1}, 2}, Shape{{0, 0, 1, 1}, 2}}) {
    Ranks ranks = MakeRanks(static_cast<int>(nodes.size()), "stages", kModelDir, num_stages);
    ranks.options.node_of_rank = nodes;
    ranks.hub->SetBindAddress("127.0.0.1");
    auto group = StartGroup(std::move(ranks));
    ASSERT_TRUE(group.ok()) << group.status();
    EXPECT_EQ((*group)->max_steps_in_flight(), num_stages);
    for (int n = 0; n < 5; ++n) {
      const auto empty = (*group)->Execute({});
      ASSERT_TRUE(empty.ok()) << empty.status();
    }
    EXPECT_EQ(Answers(*std::move(group)), expected) << nodes.size() << " ranks";
    EXPECT_EQ(NumLeftovers(GroupId("stages")), 0);
  }
}

TEST(RankServerTest, RanksThatDieChangeNoToken) {
  const auto expected = AnswersOfOneRank();
  testing::Random random(1);
  for (int round = 0; round < 6; ++round) {
    Ranks ranks = MakeRanks(2, "die", kModelDir, 1 + round % 2);
    ThreadHub* hub = ranks.hub.get();
    auto group = StartGroup(std::move(ranks));
    ASSERT_TRUE(group.ok()) << group.status();
    const auto answers = Answers(*std::move(group), [&](Engine* engine) {
      for (int n = 0; n < 3; ++n) {
        const int64_t step = engine->Stats().num_steps + random.Int(1, 4);
        const auto patience = std::chrono::steady_clock::now() + std::chrono::seconds(30);
        while (engine->Stats().num_steps < step &&
               engine->Stats().num_running + engine->Stats().num_waiting > 0 &&
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

// Its rank ends and another one is started: no fault that comes again.
TEST(RankServerTest, ALostDeviceChangesNoToken) {
  const auto expected = AnswersOfOneRank();
  std::atomic<int> steps_left = 9;
  const auto device = std::make_shared<testing::LosableDevice>(&steps_left);
  auto group = StartGroup(MakeRanks(2, "lost-device", kModelDir, 1, device));
  ASSERT_TRUE(group.ok()) << group.status();
  EXPECT_EQ(Answers(*std::move(group)), expected);
  EXPECT_LT(steps_left.load(), 0);
  EXPECT_EQ(NumLeftovers(GroupId("lost-device")), 0);
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
      options.limits = {.max_tokens = 32, .max_positions = 64, .max_samples = 8};
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
  Say(PingPayload{5});
  EXPECT_EQ(PongPayload::Decode(Hear().payload)->number, 5U);
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

TEST_F(OneRankTest, TellsWhatItIsAt) {
  const auto ask = [this] {
    Say(PingPayload{});
    return PongPayload::Decode(Hear().payload)->activity;
  };
  Say(AllocatePayload{.options = kSizes});
  ExpectHear(RankMessage::kAllocated);
  EXPECT_EQ(ask().generation, 0U);
  Join(3);
  const RankActivity before = ask();
  EXPECT_EQ(before.generation, 3U);
  EXPECT_NE(before.phase, RankPhase::kCollective);
  Say(StepPayload{.generation = 3, .number = 1});  // a barrier
  ExpectHear(RankMessage::kStepDone);
  EXPECT_EQ(ask().operation, before.operation + 1);
  while (ask().phase != RankPhase::kIdle) std::this_thread::yield();
  EXPECT_EQ(ask(), ask());  // nothing gets on
  Say(AbortPayload{.generation = 3, .reason = "it is over"});
  while (ask().generation != 0) std::this_thread::yield();
}

TEST_F(OneRankTest, AStepMayComeInParts) {
  Say(AllocatePayload{.options = kSizes});
  ExpectHear(RankMessage::kAllocated);
  Join(1);
  for (const size_t part : {7, 1000}) {
    for (comm::Frame& frame :
         StepFrames(StepPayload{.generation = 1, .number = part}.Encode(), part)) {
      channel_.SendToRank(std::move(frame));
    }
    const auto done = StepDonePayload::Decode(Hear().payload);
    ASSERT_TRUE(done.ok()) << done.status();
    EXPECT_TRUE(done->status.ok()) << done->status;
    EXPECT_EQ(done->number, part);
  }
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
