// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Ranks and stages, as threads that share a device.

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/engine/model/cuda/cuda_models.h"
#include "tests/engine/model/rank_models.h"
#include "tests/engine/model/tiny_checkpoint.h"

namespace nibble::engine {
namespace {

using testing::CudaModelTest;
using testing::FixtureModel;
using testing::ModelRunner;
using testing::RankModels;
using testing::RankShape;
using testing::RelativeDifference;
using testing::SameBits;
using testing::SomeIds;

// Two partial sums of float32 instead of one, in every layer.
constexpr double kSumTolerance = 1e-4;

class CudaRanksTest : public CudaModelTest {
 protected:
  std::vector<float> OfOneRank(const std::string& dir, const LoadOptions& load,
                               const std::vector<int32_t>& ids) {
    const auto model = LoadOnDevice(dir, load);
    if (model == nullptr) return {};
    return ModelRunner(model.get(), 16, &pool_).Prefill(ids, 4);
  }
};

TEST_F(CudaRanksTest, TwoRanksGiveTheLogitsOfOne) {
  const LoadOptions load{.dtype = DType::kF32};
  const std::vector<int32_t> ids = SomeIds(6, 128);
  const std::string dir = FixtureModel("mistral");
  RankModels ranks(dir, OnDevice(load), 2);
  ASSERT_TRUE(ranks.loaded());
  EXPECT_LT(RelativeDifference(ranks.Prefill(ids, 4), OfOneRank(dir, load, ids)), kSumTolerance);
}

TEST_F(CudaRanksTest, ExpertsOfTwoPartsGiveTheLogitsOfOneRank) {
  const LoadOptions load{.dtype = DType::kF32};
  const std::vector<int32_t> ids = SomeIds(6, 128);
  const std::string dir = FixtureModel("mixtral");
  RankModels ranks(dir, OnDevice(load), RankShape{.size = 2, .expert_size = 2});
  ASSERT_TRUE(ranks.loaded());
  EXPECT_LT(RelativeDifference(ranks.Prefill(ids, 4), OfOneRank(dir, load, ids)), kSumTolerance);
  EXPECT_EQ(ranks.model(0)->expert_load().tokens, ranks.model(1)->expert_load().tokens);
}

TEST_F(CudaRanksTest, StagesGiveTheBitsOfOne) {
  const std::vector<int32_t> ids = SomeIds(6, 128);
  const std::string dir = FixtureModel("mistral");
  RankModels ranks(dir, OnDevice({}), RankShape{.num_stages = 2});
  ASSERT_TRUE(ranks.loaded());
  EXPECT_TRUE(SameBits(ranks.Prefill(ids, 4), OfOneRank(dir, {}, ids)));
}

// The abort of a group comes while its devices are connected, or before: no communicator is there
// to be told.
TEST_F(CudaRanksTest, AnAbortReachesAGroupWhoseDevicesAreNotConnectedYet) {
  RankModels ranks(FixtureModel("mistral"), OnDevice({}), 2);
  ASSERT_TRUE(ranks.loaded());
  for (int rank = 0; rank < 2; ++rank) ranks.model(rank)->Abort("rank 7 is gone");
  ranks.OnAll([&](int rank) {
    ModelRunner runner(ranks.model(rank), 2, ranks.pool(rank));
    testing::TestSequence sequence{.ids = SomeIds(2, 128)};
    const StepPlan plan = runner.MakePlan({{.sequence = &sequence, .num_tokens = 2}});
    for (int step = 0; step < 2; ++step) {
      const absl::Status status =
          ranks.model(rank)->Forward(plan, runner.cache(), nullptr, ranks.pool(rank));
      EXPECT_EQ(status.code(), absl::StatusCode::kAborted) << status;
    }
  });
  for (int rank = 0; rank < 2; ++rank) ranks.model(rank)->SetCommunicator(ranks.communicator(rank));
  EXPECT_FALSE(ranks.Prefill(SomeIds(2, 128), 2).empty());
}

TEST_F(CudaRanksTest, WithoutCommunicatorAStepSaysSo) {
  LoadOptions load = OnDevice({});
  load.place = {.rank = 1, .size = 2};
  const auto model = testing::LoadOrFail(FixtureModel("mistral"), load, &pool_);
  ASSERT_NE(model, nullptr);
  ModelRunner runner(model.get(), 2, &pool_);
  testing::TestSequence sequence{.ids = SomeIds(2, 128)};
  const StepPlan plan = runner.MakePlan({{.sequence = &sequence, .num_tokens = 2}});
  EXPECT_EQ(model->Forward(plan, runner.cache(), nullptr, &pool_).code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace nibble::engine
