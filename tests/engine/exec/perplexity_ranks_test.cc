// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Perplexity of a model in shares.

#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/exec/perplexity.h"
#include "tests/engine/model/rank_models.h"
#include "tests/engine/model/tiny_checkpoint.h"
#include "tests/testing/random.h"

namespace nibble::engine {
namespace {

using testing::RankModels;

const std::string kModelDir = NIBBLE_SOURCE_DIR "/tests/fixtures/models/llama3";
const LoadOptions kFloat32 = {.dtype = DType::kF32};

std::vector<int32_t> Ids() {
  testing::Random random(3);
  std::vector<int32_t> ids;
  for (int i = 0; i < 200; ++i) ids.push_back(static_cast<int32_t>(random.Int(0, 159)));
  return ids;
}

std::vector<PerplexityRank> RanksOf(RankModels* models) {
  std::vector<PerplexityRank> ranks;
  for (int rank = 0; rank < models->size(); ++rank) {
    ranks.push_back(
        {models->model(rank), models->communicator(rank), models->pool(rank), models->link(rank)});
  }
  return ranks;
}

TEST(PerplexityRanksTest, IsThatOfOneRank) {
  const std::vector<int32_t> ids = Ids();
  RankModels one(kModelDir, kFloat32, 1);
  ASSERT_TRUE(one.loaded());
  int64_t last_done = 0;
  const PerplexityOptions options = {
      .context = 64, .stride = 32, .progress = [&](int64_t done, int64_t) { last_done = done; }};
  const auto want = ComputePerplexity(one.model(0), ids, options, one.pool(0));
  ASSERT_TRUE(want.ok()) << want.status();
  for (const int size : {1, 2, 4}) {
    RankModels models(kModelDir, kFloat32, size);
    ASSERT_TRUE(models.loaded());
    last_done = 0;
    const auto got = ComputePerplexity(RanksOf(&models), ids, options);
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_EQ(got->num_tokens, 200);
    EXPECT_EQ(got->num_scored, want->num_scored);
    EXPECT_NEAR(got->mean_nll, want->mean_nll, 1e-5);
    EXPECT_EQ(last_done, 199);
  }
}

// Stages work on different chunks at a time; the last one's first rank scores, on this thread.
TEST(PerplexityRanksTest, IsThatOfOneRankInStagesAndExpertParts) {
  testing::TinyCheckpoint checkpoint(3);
  checkpoint.UseExperts(4, 2);
  const std::string dir = checkpoint.Write("perplexity_experts");
  std::vector<int32_t> ids = Ids();
  for (int32_t& id : ids) id %= testing::TinyCheckpoint::kVocab;
  RankModels one(dir, kFloat32, 1);
  ASSERT_TRUE(one.loaded());
  const PerplexityOptions options = {.context = 64, .stride = 32};
  const auto want = ComputePerplexity(one.model(0), ids, options, one.pool(0));
  ASSERT_TRUE(want.ok()) << want.status();
  for (const testing::RankShape& shape :
       std::vector<testing::RankShape>{{.num_stages = 3},
                                       {.size = 2, .expert_size = 2},
                                       {.size = 2, .expert_size = 2, .num_stages = 2}}) {
    RankModels models(dir, kFloat32, shape);
    ASSERT_TRUE(models.loaded());
    int64_t last_done = 0;
    PerplexityOptions own = options;
    const auto caller = std::this_thread::get_id();
    own.progress = [&](int64_t done, int64_t) {
      EXPECT_EQ(std::this_thread::get_id(), caller);
      last_done = done;
    };
    const auto got = ComputePerplexity(RanksOf(&models), ids, own);
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_EQ(got->num_scored, want->num_scored);
    EXPECT_EQ(last_done, want->num_scored);
    if (shape.size == 1) {
      EXPECT_EQ(got->mean_nll, want->mean_nll);  // the same bits
    } else {
      EXPECT_NEAR(got->mean_nll, want->mean_nll, 1e-5);
    }
  }
}

TEST(PerplexityRanksTest, AStageThatFailsEndsAll) {
  RankModels models(kModelDir, kFloat32, testing::RankShape{.size = 2, .num_stages = 2});
  ASSERT_TRUE(models.loaded());
  for (const size_t failing_rank : {0, 3}) {
    RankModels fresh(kModelDir, kFloat32, testing::RankShape{.size = 2, .num_stages = 2});
    ASSERT_TRUE(fresh.loaded());
    std::vector<PerplexityRank> ranks = RanksOf(&fresh);
    testing::FailingCommunicator failing(ranks[failing_rank].communicator, 5);
    ranks[failing_rank].communicator = &failing;
    const auto result = ComputePerplexity(ranks, Ids(), {.context = 64, .stride = 32});
    EXPECT_EQ(result.status(), testing::FailingCommunicator::Fault());
  }
  // Without the last stage nobody has logits.
  std::vector<PerplexityRank> ranks = RanksOf(&models);
  ranks.resize(2);
  EXPECT_THAT(
      std::string(
          ComputePerplexity(ranks, Ids(), {.context = 64, .stride = 32}).status().message()),
      ::testing::HasSubstr("one rank that has logits, 0 of 2"));
}

TEST(PerplexityRanksTest, OneRankThatFailsEndsAll) {
  const std::vector<int32_t> ids = Ids();
  for (const int failing_rank : {0, 2}) {
    RankModels models(kModelDir, kFloat32, 4);
    ASSERT_TRUE(models.loaded());
    std::vector<PerplexityRank> ranks = RanksOf(&models);
    testing::FailingCommunicator failing(models.communicator(failing_rank), 11);
    ranks[static_cast<size_t>(failing_rank)].communicator = &failing;
    const auto result = ComputePerplexity(ranks, ids, {.context = 64, .stride = 32});
    EXPECT_EQ(result.status(), testing::FailingCommunicator::Fault());
  }
}

TEST(PerplexityRanksTest, WrongOptionsAreOneError) {
  RankModels models(kModelDir, kFloat32, 2);
  ASSERT_TRUE(models.loaded());
  const auto result = ComputePerplexity(RanksOf(&models), Ids(), {.context = 1, .stride = 1});
  EXPECT_THAT(std::string(result.status().message()), ::testing::HasSubstr("context is 1"));
  EXPECT_FALSE(ComputePerplexity(std::span<const PerplexityRank>(), Ids(), {}).ok());
}

}  // namespace
}  // namespace nibble::engine
