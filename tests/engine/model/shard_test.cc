// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Who holds what: every size of group over many shapes of models.

#include "engine/model/shard.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::engine {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

ModelConfig Config(int64_t num_heads, int64_t num_kv_heads, int64_t intermediate_size,
                   int64_t vocab_size) {
  ModelConfig config;
  config.hidden_size = 48;
  config.num_heads = num_heads;
  config.num_kv_heads = num_kv_heads;
  config.head_dim = 6;
  config.intermediate_size = intermediate_size;
  config.vocab_size = vocab_size;
  config.num_layers = 1;
  return config;
}

std::string Message(const absl::Status& status) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  return std::string(status.message());
}

// Counts how often each row or column of a module is on some rank.
std::vector<int> Owners(const ModelConfig& config, int size, const std::string& module,
                        bool columns) {
  const MatrixShare any = *ShareOf(config, {0, size}, module);
  std::vector<int> owners(static_cast<size_t>(columns ? any.k : any.n));
  for (int rank = 0; rank < size; ++rank) {
    const MatrixShare share = *ShareOf(config, {rank, size}, module);
    EXPECT_EQ(share.n, any.n);
    EXPECT_EQ(share.k, any.k);
    const Range range = columns ? share.columns : share.rows;
    for (int64_t i = range.begin; i < range.end; ++i) ++owners.at(static_cast<size_t>(i));
  }
  return owners;
}

// Every weight of a module is on one rank, and of KV heads on equally many neighbours.
TEST(ShardTest, SharesCoverTheModel) {
  int num_splits = 0;
  for (const int64_t heads : {1, 2, 4, 6, 8, 12, 32}) {
    for (const int64_t kv_heads : {1, 2, 3, 4, 8}) {
      if (heads % kv_heads != 0) continue;
      for (const int64_t vocab : {32, 37, 4099}) {
        const ModelConfig config = Config(heads, kv_heads, 2 * heads, vocab);
        for (int size = 1; size <= heads; ++size) {
          const bool splits = heads % size == 0 && (kv_heads % size == 0 || size % kv_heads == 0);
          EXPECT_EQ(CheckSplit(config, {0, size}).ok(), splits) << heads << ", " << kv_heads;
          if (!splits) continue;
          ++num_splits;
          const int copies = size > kv_heads ? size / static_cast<int>(kv_heads) : 1;
          for (const std::string module :
               {"q_proj", "gate_proj", "up_proj", "lm_head", "embed_tokens", "k_proj", "v_proj"}) {
            const bool is_kv = module == "k_proj" || module == "v_proj";
            for (const int owners : Owners(config, size, "model.layers.0.x." + module, false)) {
              ASSERT_EQ(owners, is_kv ? copies : 1) << module << " of " << size;
            }
            for (const int owners : Owners(config, size, module, true)) ASSERT_EQ(owners, size);
          }
          for (const std::string module : {"a.o_proj", "b.down_proj"}) {
            for (const int owners : Owners(config, size, module, true)) ASSERT_EQ(owners, 1);
            for (const int owners : Owners(config, size, module, false)) ASSERT_EQ(owners, size);
          }
        }
      }
    }
  }
  EXPECT_GT(num_splits, 100);
}

// A rank's query heads read the KV heads that the rank has.
TEST(ShardTest, HeadsFindTheirKvHeads) {
  for (const int64_t kv_heads : {1, 2, 4, 8, 16}) {
    const ModelConfig config = Config(16, kv_heads, 32, 64);
    for (const int size : {1, 2, 4, 8, 16}) {
      for (int rank = 0; rank < size; ++rank) {
        const RankPlace place = {rank, size};
        const ModelConfig own = RankConfig(config, place);
        ASSERT_EQ(own.num_heads % own.num_kv_heads, 0);
        for (int64_t head = 0; head < own.num_heads; ++head) {
          const int64_t whole_head = HeadsOf(config, place).begin + head;
          const int64_t kv_head =
              KvHeadsOf(config, place).begin + head / (own.num_heads / own.num_kv_heads);
          EXPECT_EQ(kv_head, whole_head / (16 / kv_heads)) << rank << " of " << size;
        }
        EXPECT_EQ(own.intermediate_size, 32 / size);
        EXPECT_EQ(own.vocab_size, 64);
        EXPECT_EQ(own.hidden_size, 48);
      }
    }
  }
}

TEST(ShardTest, TheVocabularyNeedNotDivide) {
  const ModelConfig config = Config(4, 4, 32, 10);
  EXPECT_EQ(VocabularyOf(config, {0, 4}), (Range{0, 2}));
  EXPECT_EQ(VocabularyOf(config, {1, 4}), (Range{2, 5}));
  EXPECT_EQ(VocabularyOf(config, {2, 4}), (Range{5, 7}));
  EXPECT_EQ(VocabularyOf(config, {3, 4}), (Range{7, 10}));
}

TEST(ShardTest, OneRankHoldsAll) {
  const ModelConfig config = Config(6, 3, 10, 7);
  for (const char* module : {"q_proj", "k_proj", "o_proj", "up_proj", "down_proj", "lm_head"}) {
    EXPECT_TRUE(ShareOf(config, {}, module)->is_whole()) << module;
  }
  EXPECT_FALSE(ShareOf(config, {}, "model.layers.0.self_attn.q_norm").has_value());
  EXPECT_FALSE(ShareOf(config, {}, "model.norm").has_value());
}

TEST(ShardTest, WhatDoesNotSplitIsNamed) {
  EXPECT_THAT(Message(CheckSplit(Config(6, 6, 12, 32), {0, 4})),
              AllOf(HasSubstr("into 4 ranks"), HasSubstr("num_attention_heads is 6"),
                    HasSubstr("are 1, 2, 3, 6")));
  EXPECT_THAT(Message(CheckSplit(Config(6, 3, 12, 32), {0, 2})),
              AllOf(HasSubstr("num_key_value_heads is 3"), HasSubstr("are 1, 3, 6")));
  EXPECT_THAT(Message(CheckSplit(Config(4, 4, 6, 32), {0, 4})),
              AllOf(HasSubstr("intermediate_size is 6"), HasSubstr("are 1, 2")));
  EXPECT_THAT(Message(CheckSplit(Config(8, 8, 8, 5), {0, 8})), HasSubstr("vocab_size is 5"));
  EXPECT_THAT(Message(CheckSplit(Config(8, 8, 8, 64), {8, 8})),
              HasSubstr("rank 8 of a tensor-parallel group of 8, must be one of 0..7"));
  EXPECT_FALSE(CheckSplit(Config(8, 8, 8, 64), {-1, 2}).ok());
  EXPECT_FALSE(CheckSplit(Config(8, 8, 8, 64), {0, 0}).ok());
}

TEST(ShardTest, CutGroupsAreNamed) {
  const ModelConfig config = Config(8, 8, 96, 64);  // q_size 48
  const auto check = [&config](int size, const std::string& module, int64_t group_size) {
    const RankPlace place = {1, size};
    return CheckOnGroups(config, place, module, *ShareOf(config, place, module), group_size);
  };
  EXPECT_TRUE(check(2, "l.down_proj", 48).ok());
  EXPECT_TRUE(check(2, "l.down_proj", 16).ok());
  EXPECT_TRUE(check(4, "l.down_proj", 8).ok());
  EXPECT_TRUE(check(8, "l.down_proj", 96).ok()) << "one scale a row";
  EXPECT_TRUE(check(8, "l.down_proj", 128).ok());
  EXPECT_TRUE(check(8, "l.up_proj", 32).ok()) << "only rows are split";
  EXPECT_THAT(Message(check(4, "l.down_proj", 16)),
              AllOf(HasSubstr("l.down_proj"), HasSubstr("96 input channels in 4 ranks are 24"),
                    HasSubstr("rank 1 has 24..47"), HasSubstr("groups of 16"),
                    HasSubstr("that do not are 1, 2")));
  EXPECT_THAT(Message(check(2, "l.o_proj", 32)), HasSubstr("that do not are 1"));
}

}  // namespace
}  // namespace nibble::engine
