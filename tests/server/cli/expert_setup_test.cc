// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/expert_setup.h"

#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/moe/expert_load.h"
#include "tests/testing/temp_dir.h"

namespace nibble::cli {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

engine::ModelConfig Load(const std::string& name) {
  auto config = engine::LoadModelConfig(NIBBLE_SOURCE_DIR "/models/" + name);
  EXPECT_TRUE(config.ok()) << config.status();
  return *config;
}

// 4 layers, 8 experts of 512 columns.
class ExpertSetupTest : public ::testing::Test {
 protected:
  std::string Error() const {
    const auto setup = SetUpExperts(options_, model_, load_);
    EXPECT_EQ(setup.status().code(), absl::StatusCode::kInvalidArgument) << setup.status();
    return std::string(setup.status().message());
  }

  // Expert 5 of every layer has most tokens.
  std::string WriteLoad(int64_t num_layers) {
    engine::ExpertLoad load{.num_layers = num_layers, .num_experts = 8, .tokens = {}};
    for (int64_t layer = 0; layer < num_layers; ++layer) {
      for (int expert = 0; expert < 8; ++expert) {
        load.tokens.push_back(expert == 5 ? 1000 : 10 + static_cast<uint64_t>(expert));
      }
    }
    const std::string path = folder_.path() + "/load.json";
    std::ofstream(path) << engine::Serialize(load);
    return path;
  }

  testing::TempDir folder_;
  engine::ModelConfig model_ = Load("stories-mixtral");
  server::ParallelOptions options_{.tensor_parallel_size = 4};
  engine::LoadOptions load_;
};

TEST_F(ExpertSetupTest, SlicesUnlessSomethingElseIsSaid) {
  EXPECT_EQ(SetUpExperts(options_, model_, load_)->expert_size, 1);
  load_.quantization = engine::Quantization::kW4A8;  // 512 / 4 columns are a group
  EXPECT_EQ(SetUpExperts(options_, model_, load_)->expert_size, 1);
  options_.experts.enable_expert_parallel = true;
  EXPECT_EQ(SetUpExperts(options_, model_, load_)->expert_size, 4);
  options_.experts = {.expert_parallel_size = 2};
  EXPECT_EQ(SetUpExperts(options_, model_, load_)->expert_size, 2);
}

TEST_F(ExpertSetupTest, GroupsOfWeightsStayWhole) {
  options_.tensor_parallel_size = 8;  // 64 columns each: half a group
  EXPECT_EQ(SetUpExperts(options_, model_, load_)->expert_size, 1);
  load_.quantization = engine::Quantization::kW4A8;
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(SetUpExperts(options_, model_, load_)->expert_size, 2);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(),
              AllOf(HasSubstr("--expert-parallel-size 2 is chosen"), HasSubstr("groups of 128")));
}

// The attention in groups of 128, the experts otherwise: theirs count.
TEST_F(ExpertSetupTest, GroupsAreThoseOfTheExperts) {
  const auto pattern = [](std::string_view text) { return *engine::NamePattern::Parse(text); };
  options_.tensor_parallel_size = 8;  // 64 columns each
  model_.quantization.emplace();
  engine::QuantizationConfig& quantization = *model_.quantization;
  quantization.groups = {
      {.targets = {pattern("re:.*self_attn.*")}, .scheme = {{.group_size = 128}}},
      {.targets = {pattern("re:.*experts.*")}, .scheme = {{.group_size = 64}}}};
  EXPECT_EQ(SetUpExperts(options_, model_, load_)->expert_size, 1);
  quantization.groups[1].scheme->group_size = 256;
  EXPECT_EQ(SetUpExperts(options_, model_, load_)->expert_size, 4);
  quantization.groups[1].scheme->group_size = 0;  // one scale a row
  EXPECT_EQ(SetUpExperts(options_, model_, load_)->expert_size, 1);
  quantization.groups[1].scheme.reset();  // left plain
  EXPECT_EQ(SetUpExperts(options_, model_, load_)->expert_size, 1);
  quantization.groups.clear();
  EXPECT_EQ(SetUpExperts(options_, model_, load_)->expert_size, 1);
}

TEST_F(ExpertSetupTest, SizesThatAreAskedForMayNotCutGroups) {
  options_ = {.tensor_parallel_size = 8, .experts = {.expert_parallel_size = 1}};
  EXPECT_EQ(SetUpExperts(options_, model_, load_)->expert_size, 1);
  load_.quantization = engine::Quantization::kW4A8;
  EXPECT_THAT(Error(), AllOf(HasSubstr("--expert-parallel-size 1: "),
                             HasSubstr("512 input channels in 8 slices are 64"),
                             HasSubstr("expert-parallel sizes that do not are 2, 4, 8")));
  options_.experts.expert_parallel_size = 2;
  EXPECT_EQ(SetUpExperts(options_, model_, load_)->expert_size, 2);
}

TEST_F(ExpertSetupTest, WhatTheModelHasNoUseForIsRefused) {
  options_.pipeline_parallel_size = 5;
  EXPECT_THAT(Error(), HasSubstr("--pipeline-parallel-size is 5, want 1 to 4"));
  options_ = {.tensor_parallel_size = 16, .experts = {.expert_parallel_size = 16}};
  EXPECT_THAT(Error(), HasSubstr("--expert-parallel-size is 16, want 8 at most"));
  options_.experts = {.enable_expert_parallel = true};
  EXPECT_THAT(Error(), HasSubstr("--tensor-parallel-size with --enable-expert-parallel is 16"));

  server::ParallelOptions options{.tensor_parallel_size = 2};
  const engine::ModelConfig dense = Load("stories-llama");
  EXPECT_EQ(SetUpExperts(options, dense, load_)->expert_size, 1);
  options.experts = {.enable_expert_parallel = true, .record_expert_load = "load.json"};
  EXPECT_THAT(std::string(SetUpExperts(options, dense, load_).status().message()),
              HasSubstr("--enable-expert-parallel, --record-expert-load load.json: the model "
                        "(LlamaForCausalLM) has no experts"));
}

TEST_F(ExpertSetupTest, ALoadDecidesTheLayout) {
  options_.experts = {
      .expert_parallel_size = 2, .expert_load = WriteLoad(4), .num_redundant_experts = 2};
  const auto setup = SetUpExperts(options_, model_, load_);
  ASSERT_TRUE(setup.ok()) << setup.status();
  ASSERT_NE(setup->layout, nullptr);
  EXPECT_EQ(setup->layout->num_slots, 10);
  EXPECT_TRUE(engine::CheckExpertLayout(*setup->layout, 4, 8, 2).ok());
  EXPECT_EQ(setup->load_fingerprint.size(), 64U);
  // The fullest expert is on both.
  const std::vector<int32_t>& experts = setup->layout->expert_of_slot;
  EXPECT_EQ(std::count(experts.begin(), experts.begin() + 5, 5), 1);
  EXPECT_EQ(std::count(experts.begin() + 5, experts.begin() + 10, 5), 1);
  EXPECT_EQ(DescribeRanks(options_, *setup, true),
            "4, experts in 2 parts of 2 slices, placed by load with 2 copies");
}

TEST_F(ExpertSetupTest, LoadsThatDoNotFitAreRefused) {
  options_.experts = {.expert_load = WriteLoad(4)};
  EXPECT_THAT(Error(), HasSubstr("--enable-expert-parallel or --expert-parallel-size 2 or more"));
  options_.experts.enable_expert_parallel = true;
  options_.experts.num_redundant_experts = 6;
  EXPECT_THAT(Error(), AllOf(HasSubstr("--num-redundant-experts 6"), HasSubstr("4 or 8 would do")));
  options_.experts.num_redundant_experts = 1;
  EXPECT_THAT(Error(), HasSubstr("0 or 4 would do"));
  options_.tensor_parallel_size = 5;  // nothing less than 10 slots
  EXPECT_THAT(Error(), HasSubstr("among 5 parts; 2 would do"));
  options_.tensor_parallel_size = 4;
  options_.experts.num_redundant_experts = 0;
  WriteLoad(3);
  EXPECT_THAT(Error(), HasSubstr("3 layers with 8 experts, the model has 4 with 8"));
  std::ofstream(options_.experts.expert_load) << "{}";
  EXPECT_THAT(Error(), HasSubstr("load.json"));
  options_.experts.expert_load += ".none";
  EXPECT_EQ(SetUpExperts(options_, model_, load_).status().code(), absl::StatusCode::kNotFound);
}

TEST(PlaceOfTest, StagesAreConsecutiveRanks) {
  const server::ParallelOptions options{.tensor_parallel_size = 4, .pipeline_parallel_size = 3};
  const engine::RankPlace place = PlaceOf(options, 2, 6);
  EXPECT_EQ(place.stage, 1);
  EXPECT_EQ(place.rank, 2);
  EXPECT_EQ(place.num_stages, 3);
  EXPECT_EQ(place.expert_size, 2);
  EXPECT_EQ(place.world_rank(), 6);
  EXPECT_EQ(place.world_size(), options.world_size());
}

TEST(DescribeRanksTest, SaysWhatIsWhere) {
  server::ParallelOptions options{.tensor_parallel_size = 2};
  EXPECT_EQ(DescribeRanks(options, {}, false), "2");
  EXPECT_EQ(DescribeRanks(options, {}, true), "2, a slice of every expert on each");
  options.pipeline_parallel_size = 2;
  EXPECT_EQ(DescribeRanks(options, {.expert_size = 2}, true),
            "2 stages x 2, experts whole on each");
  options.tensor_parallel_size = 1;
  EXPECT_EQ(DescribeRanks(options, {}, true), "2 stages x 1");
}

}  // namespace
}  // namespace nibble::cli
