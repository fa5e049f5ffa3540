// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Who holds which experts and layers.

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/model/shard.h"

namespace nibble::engine {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

ModelConfig Config(int64_t num_experts, int64_t intermediate, int64_t shared = 0) {
  ModelConfig config;
  config.architecture = Architecture::kQwen2Moe;
  config.model_type = "qwen2_moe";
  config.hidden_size = 64;
  config.num_heads = 16;
  config.num_kv_heads = 16;
  config.head_dim = 4;
  config.intermediate_size = 96;
  config.vocab_size = 100;
  config.num_layers = 5;
  config.sliding_window = {0, 1, 2, 3, 4};
  config.moe = MoeConfig{.num_experts = num_experts,
                         .num_experts_per_tok = 2,
                         .intermediate_size = intermediate,
                         .shared_expert_intermediate_size = shared,
                         .is_moe_layer = {true, true, true, true, true}};
  return config;
}

std::string Message(const absl::Status& status) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  return std::string(status.message());
}

RankPlace Place(int rank, int size, int expert_size) {
  return {.rank = rank, .size = size, .expert_size = expert_size};
}

// In all forms of one group: every weight of every expert is on exactly one rank.
TEST(ShardExpertsTest, SlotsAndSlicesCoverAllExperts) {
  const ModelConfig config = Config(8, 48);
  for (const int size : {1, 2, 4, 8}) {
    for (int expert_size = 1; expert_size <= size; expert_size *= 2) {
      ASSERT_TRUE(CheckSplit(config, Place(0, size, expert_size)).ok());
      std::vector<std::vector<int>> owners(8, std::vector<int>(48));
      for (int rank = 0; rank < size; ++rank) {
        const RankPlace place = Place(rank, size, expert_size);
        const Range slots = SlotsOf(8, place);
        for (int64_t e = slots.begin; e < slots.end; ++e) {
          const std::string expert = "model.layers.0.mlp.experts." + std::to_string(e);
          const MatrixShare up = *ShareOf(config, place, expert + ".up_proj");
          const MatrixShare down = *ShareOf(config, place, expert + ".down_proj");
          EXPECT_EQ(up.rows, down.columns);
          EXPECT_TRUE(up.has_all_columns());
          EXPECT_EQ(down.rows, (Range{0, 64}));
          EXPECT_EQ(up.n, 48);
          EXPECT_EQ(up.k, 64);
          for (int64_t i = up.rows.begin; i < up.rows.end; ++i) {
            ++owners[static_cast<size_t>(e)][static_cast<size_t>(i)];
          }
        }
        EXPECT_EQ(RankConfig(config, place).moe->intermediate_size, 48 * expert_size / size);
      }
      EXPECT_THAT(owners, Each(Each(1))) << size << " ranks, " << expert_size << " parts";
    }
  }
}

TEST(ShardExpertsTest, NamesOfExperts) {
  const ModelConfig config = Config(8, 48, 32);
  const RankPlace place = Place(3, 4, 2);  // the second slice of the second part
  const std::string layer = "model.layers.1.";
  for (const char* gate : {"block_sparse_moe.experts.5.w1", "block_sparse_moe.experts.5.w3",
                           "mlp.experts.12.gate_proj", "mlp.experts.0.up_proj"}) {
    EXPECT_EQ(ShareOf(config, place, layer + gate)->rows, (Range{24, 48})) << gate;
  }
  for (const char* down : {"block_sparse_moe.experts.5.w2", "mlp.experts.5.down_proj"}) {
    EXPECT_EQ(ShareOf(config, place, layer + down)->columns, (Range{24, 48})) << down;
  }
  // The shared expert and dense layers are cut over all ranks.
  EXPECT_EQ(ShareOf(config, place, layer + "mlp.shared_expert.up_proj")->rows, (Range{24, 32}));
  EXPECT_EQ(ShareOf(config, place, layer + "mlp.shared_expert.down_proj")->columns,
            (Range{24, 32}));
  EXPECT_EQ(ShareOf(config, place, layer + "mlp.up_proj")->rows, (Range{72, 96}));
  for (const char* whole : {"mlp.gate", "block_sparse_moe.gate", "mlp.shared_expert_gate"}) {
    EXPECT_FALSE(ShareOf(config, place, layer + whole).has_value()) << whole;
  }
  EXPECT_EQ(LayerOf(layer + "mlp.experts.12.up_proj"), 1);
  EXPECT_EQ(ExpertOf(layer + "mlp.experts.12.up_proj"), 12);
  EXPECT_FALSE(ExpertOf(layer + "mlp.experts.gate_up_proj").has_value());
  EXPECT_FALSE(ExpertOf(layer + "mlp.experts.-1.up_proj").has_value());
  EXPECT_FALSE(ExpertOf(layer + "mlp.experts.99999999999999999999.up_proj").has_value());
  EXPECT_FALSE(LayerOf("model.norm").has_value());
}

TEST(ShardExpertsTest, StagesHoldAllLayersOnce) {
  const ModelConfig config = Config(8, 48);
  for (int num_stages = 1; num_stages <= 5; ++num_stages) {
    int64_t next = 0;
    for (int stage = 0; stage < num_stages; ++stage) {
      const RankPlace place = {.stage = stage, .num_stages = num_stages};
      ASSERT_TRUE(CheckSplit(config, place).ok());
      const Range layers = LayersOf(config, place);
      EXPECT_EQ(layers.begin, next);
      EXPECT_GE(layers.size(), 5 / num_stages);
      EXPECT_LE(layers.size(), (5 + num_stages - 1) / num_stages);
      next = layers.end;
    }
    EXPECT_EQ(next, 5);
  }
  EXPECT_EQ(LayersOf(config, {.stage = 0, .num_stages = 2}), (Range{0, 3}));
}

TEST(ShardExpertsTest, AStageHasItsOwnLayersAndEnds) {
  ModelConfig config = Config(8, 48);
  config.moe->is_moe_layer = {true, false, true, false, false};
  const RankPlace first = {.stage = 0, .num_stages = 2};
  const RankPlace last = {.stage = 1, .num_stages = 2};
  const ModelConfig own = RankConfig(config, last);
  EXPECT_EQ(own.num_layers, 2);
  EXPECT_THAT(own.sliding_window, ElementsAre(3, 4));
  EXPECT_THAT(own.moe->is_moe_layer, ElementsAre(false, false));
  EXPECT_EQ(own.moe->num_experts, 8);
  EXPECT_THAT(RankConfig(config, first).moe->is_moe_layer, ElementsAre(true, false, true));

  const auto on = [&config](const std::string& name) {
    return std::vector<bool>{IsOnStage(config, {.stage = 0, .num_stages = 3}, name),
                             IsOnStage(config, {.stage = 1, .num_stages = 3}, name),
                             IsOnStage(config, {.stage = 2, .num_stages = 3}, name)};
  };
  EXPECT_THAT(on("model.layers.1.mlp.gate.weight"), ElementsAre(true, false, false));
  EXPECT_THAT(on("model.layers.3.self_attn.q_proj"), ElementsAre(false, true, false));
  EXPECT_THAT(on("model.layers.4.mlp"), ElementsAre(false, false, true));
  EXPECT_THAT(on("model.layers.40.mlp"), ElementsAre(false, false, false));
  EXPECT_THAT(on("model.embed_tokens.weight"), ElementsAre(true, false, false));
  EXPECT_THAT(on("model.norm.weight"), ElementsAre(false, false, true));
  EXPECT_THAT(on("lm_head.weight"), ElementsAre(false, false, true));
  config.tie_word_embeddings = true;
  EXPECT_THAT(on("model.embed_tokens.weight"), ElementsAre(true, false, true));
}

TEST(ShardExpertsTest, WhatDoesNotSplitIsNamed) {
  const ModelConfig config = Config(6, 48);
  EXPECT_THAT(Message(CheckSplit(config, Place(0, 4, 4))),
              AllOf(HasSubstr("experts do not split into 4 parts"),
                    HasSubstr("number of experts is 6"), HasSubstr("with 4 ranks are 1, 2")));
  EXPECT_THAT(Message(CheckSplit(config, Place(0, 8, 8))),
              AllOf(HasSubstr("number of experts is 6"), HasSubstr("with 8 ranks are 1, 2")))
      << "more ranks than experts";
  EXPECT_THAT(Message(CheckSplit(Config(8, 12), Place(0, 8, 1))),
              AllOf(HasSubstr("8 slices"), HasSubstr("moe_intermediate_size is 12"),
                    HasSubstr("with 8 ranks are 2, 4, 8")));
  EXPECT_THAT(Message(CheckSplit(Config(8, 48, 20), Place(0, 8, 8))),
              AllOf(HasSubstr("shared_expert_intermediate_size is 20"), HasSubstr("are 1, 2, 4")));
  EXPECT_THAT(Message(CheckSplit(config, Place(0, 4, 3))),
              AllOf(HasSubstr("expert-parallel size is 3"), HasSubstr("tensor-parallel size 4")));
  EXPECT_THAT(Message(CheckSplit(config, Place(0, 4, 0))), HasSubstr("size is 0"));
  ModelConfig dense = config;
  dense.moe.reset();
  EXPECT_THAT(Message(CheckSplit(dense, Place(0, 2, 2))), HasSubstr("no experts"));
  // A layout with replicas divides where the experts do not.
  EXPECT_TRUE(CheckSplit(config, Place(0, 4, 4), 8).ok());
  EXPECT_THAT(Message(CheckSplit(config, Place(0, 4, 4), 7)), HasSubstr("num_slots is 7"));
  // Where all layers have experts, nothing is of intermediate_size.
  ModelConfig odd = config;
  odd.intermediate_size = 7;
  EXPECT_TRUE(CheckSplit(odd, Place(0, 2, 1)).ok());
  odd.moe->is_moe_layer[2] = false;
  EXPECT_THAT(Message(CheckSplit(odd, Place(0, 2, 1))), HasSubstr("intermediate_size is 7"));

  const auto stages = [&config](int stage, int num_stages) {
    return Message(CheckSplit(config, {.stage = stage, .num_stages = num_stages}));
  };
  EXPECT_THAT(stages(0, 6), AllOf(HasSubstr("6 pipeline stages"), HasSubstr("layers is 5")));
  EXPECT_THAT(stages(2, 2), HasSubstr("stage 2 of a pipeline of 2, must be one of 0..1"));
  EXPECT_THAT(stages(0, 0), HasSubstr("pipeline of 0"));
}

// The shapes that people have: Mixtral-8x7B is cut, the small experts of Qwen3-30B-A3B are not.
TEST(ShardExpertsTest, ExpertsAreCutOnlyBetweenGroups) {
  ModelConfig mixtral = Config(8, 14336);
  mixtral.architecture = Architecture::kMixtral;
  EXPECT_EQ(*ChooseExpertSize(mixtral, 8, 128), 1);
  const ModelConfig qwen3 = Config(128, 768);
  EXPECT_EQ(*ChooseExpertSize(qwen3, 1, 128), 1);
  EXPECT_EQ(*ChooseExpertSize(qwen3, 2, 128), 1);
  EXPECT_EQ(*ChooseExpertSize(qwen3, 4, 128), 2);
  EXPECT_EQ(*ChooseExpertSize(qwen3, 8, 128), 4);
  EXPECT_EQ(*ChooseExpertSize(qwen3, 8, 0), 1) << "no groups";
  EXPECT_EQ(*ChooseExpertSize(qwen3, 8, 768), 1) << "one scale a row";
  EXPECT_EQ(*ChooseExpertSize(Config(8, 1408), 8, 128), 8);
  EXPECT_EQ(*ChooseExpertSize(Config(6, 1408), 4, 128, 8), 4) << "with replicas";
  EXPECT_THAT(Message(ChooseExpertSize(Config(6, 1408), 8, 128).status()),
              AllOf(HasSubstr("into 8 ranks: there are 6 of moe_intermediate_size 1408"),
                    HasSubstr("groups of 128"), HasSubstr("are 1, 2")));
  ModelConfig dense = qwen3;
  dense.moe.reset();
  EXPECT_EQ(*ChooseExpertSize(dense, 8, 128), 1);

  EXPECT_TRUE(CheckExpertsOnGroups(qwen3, Place(5, 8, 4), 128).ok());
  EXPECT_TRUE(CheckExpertsOnGroups(qwen3, Place(5, 8, 8), 128).ok());
  EXPECT_TRUE(CheckExpertsOnGroups(qwen3, Place(5, 8, 1), 0).ok());
  EXPECT_THAT(
      Message(CheckExpertsOnGroups(qwen3, Place(5, 8, 1), 128)),
      AllOf(HasSubstr("down_proj: its 768 input channels in 8 slices are 96 each"),
            HasSubstr("groups of 128"), HasSubstr("expert-parallel sizes that do not are 4, 8"),
            Not(HasSubstr("tensor-parallel"))));
  // 132 slots are not cut into 8.
  EXPECT_THAT(Message(CheckExpertsOnGroups(qwen3, Place(5, 8, 1), 128, 132)),
              HasSubstr("expert-parallel sizes that do not are 4"));
  EXPECT_THAT(Message(CheckExpertsOnGroups(qwen3, Place(5, 8, 1), 128, 132)),
              Not(HasSubstr("4, 8")));
}

TEST(ShardExpertsTest, TheFirstExpertIsOfTheFirstLayerThatHasAny) {
  ModelConfig config = Config(8, 96);
  EXPECT_EQ(FirstExpertDown(config), "model.layers.0.mlp.experts.0.down_proj");
  config.moe->is_moe_layer[0] = false;
  EXPECT_EQ(FirstExpertDown(config), "model.layers.1.mlp.experts.0.down_proj");
  config.architecture = Architecture::kMixtral;
  EXPECT_EQ(FirstExpertDown(config), "model.layers.1.block_sparse_moe.experts.0.w2");
}

}  // namespace
}  // namespace nibble::engine
