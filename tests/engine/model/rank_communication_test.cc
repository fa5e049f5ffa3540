// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What ranks ask of their communicator, and what they do when it fails.

#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/model/model.h"
#include "tests/engine/model/model_runner.h"
#include "tests/engine/model/rank_models.h"

namespace nibble::engine {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::ModelRunner;
using testing::RankModels;
using testing::TestSequence;

const std::string kModel = NIBBLE_SOURCE_DIR "/tests/fixtures/models/llama3";

Isa BestIsa() { return testing::HostIsas().back(); }

// Embedding rows are summed exactly, then twice a layer; the last layer's rows are those sampled.
TEST(RankCommunicationTest, SumsOfAStep) {
  RankModels ranks(kModel, {.isa = BestIsa()}, 2);
  ASSERT_TRUE(ranks.loaded());
  testing::FailingCommunicator recorder(ranks.communicator(1), -1);
  ranks.model(1)->SetCommunicator(&recorder);
  ranks.OnAll([&](int rank) {
    ModelRunner runner(ranks.model(rank), 4, ranks.pool(rank));
    TestSequence a{.ids = {1, 2, 3, 4, 5}};
    TestSequence b{.ids = {6, 7, 8}};
    runner.Step({{.sequence = &a, .num_tokens = 5}, {.sequence = &b, .num_tokens = 3}});
    // A chunk of a prompt, of which nothing is sampled.
    TestSequence c{.ids = {9, 10, 11, 12}};
    StepPlan plan = runner.MakePlan({{.sequence = &c, .num_tokens = 4}});
    plan.logits_indices.clear();
    EXPECT_TRUE(ranks.model(rank)->Forward(plan, runner.cache(), nullptr, ranks.pool(rank)).ok());
  });
  std::vector<std::pair<int64_t, bool>> calls;  // rows, exact
  for (const comm::AllReduceArgs& args : recorder.all_reduces()) {
    EXPECT_EQ(args.row_size, 64);
    calls.emplace_back(args.num_rows, args.exact);
    EXPECT_EQ(args.is_bf16, args.exact);  // the fixture's table is bfloat16
  }
  using Call = std::pair<int64_t, bool>;
  EXPECT_THAT(calls, ::testing::ElementsAre(Call(8, true), Call(8, false), Call(8, false),
                                            Call(8, false), Call(8, false), Call(2, false),
                                            Call(2, false), Call(4, true), Call(4, false),
                                            Call(4, false), Call(4, false), Call(4, false)));
}

TEST(RankCommunicationTest, ReserveCountsTheLogitsThatAreGathered) {
  RankModels ranks(kModel, {.isa = BestIsa()}, 2);
  ASSERT_TRUE(ranks.loaded());
  const StepLimits possible = {.max_tokens = 8, .max_positions = 16, .max_samples = 8};
  const StepLimits absurd = {
      .max_tokens = 8, .max_positions = 16, .max_samples = std::numeric_limits<int32_t>::max()};
  for (const int rank : {0, 1}) {
    Model* const model = ranks.model(rank);
    EXPECT_TRUE(model->Reserve(possible, ranks.pool(rank)).ok());
    const absl::Status status = model->Reserve(absurd, ranks.pool(rank));
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(status.message()), HasSubstr("2147483647 rows of logits"));
  }
}

TEST(RankCommunicationTest, ForwardNeedsItsCommunicator) {
  ThreadPool pool(1);
  auto model =
      testing::LoadOrFail(kModel, {.place = {.rank = 1, .size = 2}, .isa = BestIsa()}, &pool);
  ASSERT_NE(model, nullptr);
  ModelRunner runner(model.get(), 2, &pool);
  TestSequence sequence{.ids = {1, 2, 3}};
  const StepPlan plan = runner.MakePlan({{.sequence = &sequence, .num_tokens = 3}});
  EXPECT_EQ(model->Forward(plan, runner.cache(), nullptr, &pool).code(),
            absl::StatusCode::kFailedPrecondition);
  auto group = comm::MakeThreadGroup(3, {.mode = comm::AllReduceOptions::Mode::kNone});
  ASSERT_TRUE(group.ok());
  model->SetCommunicator((*group)[1].get());
  EXPECT_THAT(std::string(model->Forward(plan, runner.cache(), nullptr, &pool).message()),
              AllOf(HasSubstr("rank 1 of 3"), HasSubstr("rank 1 of 2")));
}

// Whichever sum fails: the error comes out as it is, and nobody waits for ever.
TEST(RankCommunicationTest, ErrorsOfTheCommunicatorAreReturned) {
  for (const int fail_at : {0, 1, 2, 4}) {  // embedding, o, down, the next layer's
    RankModels ranks(kModel, {.isa = BestIsa()}, 2);
    ASSERT_TRUE(ranks.loaded());
    testing::FailingCommunicator failing(ranks.communicator(1), fail_at);
    ranks.model(1)->SetCommunicator(&failing);
    std::vector<absl::Status> statuses(2);
    ranks.OnAll([&](int rank) {
      ModelRunner runner(ranks.model(rank), 2, ranks.pool(rank));
      TestSequence sequence{.ids = {1, 2, 3}};
      const StepPlan plan = runner.MakePlan({{.sequence = &sequence, .num_tokens = 3}});
      std::vector<float> logits(160);
      absl::Status& status = statuses[static_cast<size_t>(rank)];
      status = ranks.model(rank)->Forward(plan, runner.cache(), logits.data(), ranks.pool(rank));
      if (!status.ok()) ranks.communicator(1 - rank)->Abort("a peer failed");
    });
    EXPECT_EQ(statuses[1], testing::FailingCommunicator::Fault()) << fail_at;
    EXPECT_FALSE(statuses[0].ok()) << fail_at;
  }
}

}  // namespace
}  // namespace nibble::engine
