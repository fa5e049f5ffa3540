// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Ranks that reach each other's memory: what sums on its way, alone and in captured graphs, gives
// the bits of sums that go by way of the host.

#include <latch>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/model/cuda/cuda_decoder.h"
#include "tests/engine/model/cuda/cuda_models.h"
#include "tests/engine/model/rank_models.h"

namespace nibble::engine {
namespace {

using testing::CudaModelTest;
using testing::FixtureModel;
using ::testing::HasSubstr;
using testing::ModelRunner;
using testing::RankModels;
using testing::RankShape;
using testing::SameBits;
using testing::SomeIds;
using testing::TestChunk;
using testing::TestSequence;
using Mode = comm::AllReduceOptions::Mode;

constexpr int kRanks = 2;

// Ranks are threads whose kernels wait for one another: with a device each where there are as many,
// else on one, whose kernels the emulator runs all at a time, a real device as its driver likes.
class CudaLinksTest : public CudaModelTest {
 protected:
  static constexpr StepLimits kLimits{
      .max_tokens = 16, .max_positions = 64, .max_samples = 4, .max_seqs = 4, .block_size = 16};

  void SetUp() override {
    CudaModelTest::SetUp();
#ifndef NIBBLE_SIMT
    if (!IsSkipped() && ListCudaDevices().usable.size() < kRanks) {
      GTEST_SKIP() << "ranks of one device: its kernels may not run together";
    }
#endif
  }

  static CudaOptions By(CudaTransport transport, bool eager) {
    return {.enforce_eager = eager, .use_cublaslt = false, .transport = transport};
  }
  // All ranks, with all that they take for steps: freeing memory waits for the device, and with it
  // for ranks that wait for this one.
  std::unique_ptr<RankModels> Load(const CudaOptions& options, const comm::AllReduceOptions& sums) {
    std::vector<std::shared_ptr<const ModelDevice>> devices;
    const auto num_devices = static_cast<int>(ListCudaDevices().usable.size());
    for (int rank = 0; rank < kRanks; ++rank) {
      CudaOptions own = options;
      own.index = num_devices < kRanks ? 0 : rank;
      devices.push_back(OnDevice({}, own).device);
    }
    auto ranks = std::make_unique<RankModels>(FixtureModel("mistral"), LoadOptions(),
                                              RankShape{.size = kRanks}, sums, 1, devices);
    EXPECT_TRUE(ranks->loaded());
    for (int rank = 0; rank < ranks->size(); ++rank) {
      EXPECT_TRUE(ranks->model(rank)->Reserve(kLimits, ranks->pool(rank)).ok());
      ranks->model(rank)->SetAllReduce(sums);
    }
    return ranks;
  }
  static CudaDecoderModel& ModelOf(RankModels& ranks, int rank) {
    return static_cast<CudaDecoderModel&>(*ranks.model(rank));
  }

  // Logits of `steps` decode steps of two sequences behind prompts of 3 and 4 tokens.
  static std::vector<float> Decode(RankModels& ranks, int steps) {
    std::vector<float> logits;
    std::vector<std::unique_ptr<ModelRunner>> runners;
    for (int rank = 0; rank < kRanks; ++rank) {
      runners.push_back(std::make_unique<ModelRunner>(ranks.model(rank), 4, ranks.pool(rank)));
    }
    ranks.OnAll([&](int rank) {
      std::vector<TestSequence> sequences;
      for (uint64_t s = 0; s < 2; ++s) sequences.push_back({.ids = SomeIds(12, 128, 20 + s)});
      std::vector<TestChunk> chunks = {{.sequence = &sequences[0], .num_tokens = 3},
                                       {.sequence = &sequences[1], .num_tokens = 4}};
      std::vector<float> own;
      for (int step = 0; step <= steps; ++step) {
        const std::vector<float> more = runners[static_cast<size_t>(rank)]->Step(chunks);
        own.insert(own.end(), more.begin(), more.end());
        for (TestChunk& chunk : chunks) chunk.num_tokens = 1;
      }
      if (rank == 0) logits = own;
    });
    return logits;
  }
};

TEST_F(CudaLinksTest, SumsInMappedMemoryHaveTheBitsOfTheHosts) {
  for (const comm::AllReduceOptions& sums :
       {comm::AllReduceOptions{.mode = Mode::kNone},
        comm::AllReduceOptions{.mode = Mode::kFixed, .codec = {.bits = 8, .group_size = 32}}}) {
    const auto host = Load(By(CudaTransport::kHost, true), sums);
    const auto eager = Load(By(CudaTransport::kP2p, true), sums);
    const auto replayed = Load(By(CudaTransport::kP2p, false), sums);
    const std::vector<float> wanted = Decode(*host, 3);
    EXPECT_TRUE(SameBits(Decode(*eager, 3), wanted)) << sums.codec.bits;
    EXPECT_TRUE(SameBits(Decode(*replayed, 3), wanted)) << sums.codec.bits;
    EXPECT_EQ(ModelOf(*host, 1).num_graphs(), 0);
    EXPECT_EQ(ModelOf(*eager, 1).num_graphs(), 0);
    EXPECT_EQ(ModelOf(*replayed, 1).num_graphs(), 1);
  }
}

// A graph holds the addresses of what it was captured with.
TEST_F(CudaLinksTest, ANewCommunicatorIsCapturedAnew) {
  const auto ranks = Load(By(CudaTransport::kP2p, false), {.mode = Mode::kNone});
  const std::vector<float> before = Decode(*ranks, 3);
  for (int rank = 0; rank < kRanks; ++rank) {
    EXPECT_EQ(ModelOf(*ranks, rank).num_graphs(), 1);
    ranks->model(rank)->SetCommunicator(ranks->communicator(rank));
    EXPECT_EQ(ModelOf(*ranks, rank).num_graphs(), 0);
  }
  EXPECT_TRUE(SameBits(Decode(*ranks, 3), before));
}

TEST_F(CudaLinksTest, WhatIsMeasuredHoldsInLaterGroups) {
  const comm::AllReduceOptions sums{.mode = Mode::kAuto, .codec = {.group_size = 32}};
  const auto ranks = Load(By(CudaTransport::kP2p, true), {.mode = Mode::kNone});
  std::vector<comm::AllReducePolicy> measured(kRanks);
  const auto connect = [&](const comm::AllReducePolicy& known,
                           std::vector<comm::AllReducePolicy>* found) {
    for (int rank = 0; rank < kRanks; ++rank) {
      ranks->model(rank)->SetAllReduce(sums);
      ranks->model(rank)->SetCommunicator(ranks->communicator(rank));
    }
    ranks->OnAll([&](int rank) {
      const auto policy = ranks->model(rank)->ConnectDevices(known, ranks->pool(rank));
      ASSERT_TRUE(policy.ok()) << policy.status();
      (*found)[static_cast<size_t>(rank)] = *policy;
    });
  };
  connect({}, &measured);
  EXPECT_FALSE(measured[0].choices.empty());
  EXPECT_EQ(comm::Serialize(measured[0]), comm::Serialize(measured[1]));

  // Whatever it was: what was in force before comes back.
  const comm::AllReducePolicy known{{{3000, comm::Algorithm::kTwoShot, {.bits = 5}},
                                     {INT64_MAX, comm::Algorithm::kOneShot, {.bits = 16}}}};
  std::vector<comm::AllReducePolicy> again(kRanks);
  connect(known, &again);
  EXPECT_EQ(comm::Serialize(again[0]), comm::Serialize(known));
  EXPECT_EQ(comm::Serialize(again[1]), comm::Serialize(known));
}

TEST_F(CudaLinksTest, WithoutMappedMemoryTheHostsPolicyHolds) {
  const auto ranks = Load(By(CudaTransport::kHost, true), {.mode = Mode::kNone});
  ranks->OnAll([&](int rank) {
    const auto policy = ranks->model(rank)->ConnectDevices({}, ranks->pool(rank));
    ASSERT_TRUE(policy.ok()) << policy.status();
    EXPECT_TRUE(policy->choices.empty());
  });
}

TEST_F(CudaLinksTest, AnAbortEndsAStepThatWaitsForAnotherRank) {
  const auto ranks = Load(By(CudaTransport::kP2p, false), {.mode = Mode::kNone});
  const std::vector<float> before = Decode(*ranks, 3);  // graphs, too
  std::vector<std::unique_ptr<ModelRunner>> runners;
  for (int rank = 0; rank < kRanks; ++rank) {
    runners.push_back(std::make_unique<ModelRunner>(ranks->model(rank), 4, ranks->pool(rank)));
  }
  std::latch is_over(kRanks);
  ranks->OnAll([&](int rank) {
    if (rank == 0) {
      TestSequence sequence{.ids = SomeIds(4, 128)};
      const StepPlan plan = runners[0]->MakePlan({{.sequence = &sequence, .num_tokens = 4}});
      std::vector<float> logits(128);
      const absl::Status status =
          ranks->model(0)->Forward(plan, runners[0]->cache(), logits.data(), ranks->pool(0));
      EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1 has given up"));
    } else {
      ranks->model(1)->Abort("formed anew");
    }
    is_over.arrive_and_wait();
  });
  auto group = comm::MakeThreadGroup(kRanks, {.mode = Mode::kNone});
  ASSERT_TRUE(group.ok()) << group.status();
  for (int rank = 0; rank < kRanks; ++rank) {
    EXPECT_TRUE(ranks->model(rank)->Health().ok());
    ranks->model(rank)->SetCommunicator((*group)[static_cast<size_t>(rank)].get());
  }
  EXPECT_TRUE(SameBits(Decode(*ranks, 3), before));
  for (int rank = 0; rank < kRanks; ++rank) ranks->model(rank)->SetCommunicator(nullptr);
}

}  // namespace
}  // namespace nibble::engine
