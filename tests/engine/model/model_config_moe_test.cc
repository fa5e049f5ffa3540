// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What config.json says of experts.

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/model/model_config.h"

namespace nibble::engine {
namespace {

using nlohmann::json;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A small config of the three architectures that says as little as can be, with `changes` merged in
// (null removes a key).
std::string With(const json& changes, const char* model_type) {
  json config = {{"model_type", model_type}, {"hidden_size", 64},
                 {"intermediate_size", 96},  {"num_hidden_layers", 4},
                 {"num_attention_heads", 4}, {"num_key_value_heads", 2},
                 {"vocab_size", 128},        {"max_position_embeddings", 256},
                 {"torch_dtype", "bfloat16"}};
  config.merge_patch(changes);
  return config.dump();
}

ModelConfig Parse(const json& changes, const char* model_type) {
  auto config = ParseModelConfig(With(changes, model_type), "config.json");
  EXPECT_TRUE(config.ok()) << config.status();
  return config.value_or(ModelConfig());
}

MoeConfig ParseExperts(const json& changes, const char* model_type) {
  const ModelConfig config = Parse(changes, model_type);
  EXPECT_TRUE(config.moe.has_value());
  return config.moe.value_or(MoeConfig());
}

TEST(ModelConfigMoeTest, AbsentFieldsTakeTransformersDefaults) {
  const ModelConfig mixtral = Parse(json::object(), "mixtral");
  EXPECT_EQ(mixtral.architecture, Architecture::kMixtral);
  EXPECT_EQ(mixtral.moe->num_experts, 8);
  EXPECT_EQ(mixtral.moe->num_experts_per_tok, 2);
  EXPECT_EQ(mixtral.moe->intermediate_size, 96);
  EXPECT_TRUE(mixtral.moe->norm_topk_prob);
  EXPECT_EQ(mixtral.moe->shared_expert_intermediate_size, 0);
  EXPECT_THAT(mixtral.moe->is_moe_layer, ElementsAre(true, true, true, true));
  EXPECT_EQ(mixtral.rope.theta, 1e6);
  EXPECT_FLOAT_EQ(mixtral.rms_norm_eps, 1e-5F);
  EXPECT_THAT(mixtral.sliding_window, Each(0));
  EXPECT_FALSE(mixtral.qkv_bias || mixtral.qk_norm);

  const ModelConfig qwen2 = Parse(json::object(), "qwen2_moe");
  EXPECT_EQ(qwen2.moe->num_experts, 60);
  EXPECT_EQ(qwen2.moe->num_experts_per_tok, 4);
  EXPECT_EQ(qwen2.moe->intermediate_size, 1408);
  EXPECT_EQ(qwen2.moe->shared_expert_intermediate_size, 5632);
  EXPECT_FALSE(qwen2.moe->norm_topk_prob);
  EXPECT_EQ(qwen2.rope.theta, 1e4);
  EXPECT_FLOAT_EQ(qwen2.rms_norm_eps, 1e-6F);
  EXPECT_TRUE(qwen2.qkv_bias && !qwen2.o_bias && !qwen2.qk_norm);
  EXPECT_FALSE(Parse({{"qkv_bias", false}}, "qwen2_moe").qkv_bias);

  const ModelConfig qwen3 = Parse(json::object(), "qwen3_moe");
  EXPECT_EQ(qwen3.moe->num_experts, 128);
  EXPECT_EQ(qwen3.moe->num_experts_per_tok, 8);
  EXPECT_EQ(qwen3.moe->intermediate_size, 768);
  EXPECT_EQ(qwen3.moe->shared_expert_intermediate_size, 0);
  EXPECT_FALSE(qwen3.moe->norm_topk_prob);
  EXPECT_EQ(qwen3.head_dim, 16);  // not Qwen3's 128
  EXPECT_TRUE(qwen3.qk_norm && !qwen3.qkv_bias);
  EXPECT_TRUE(Parse({{"attention_bias", true}}, "qwen3_moe").qkv_bias);
  EXPECT_EQ(
      ParseModelConfig(With({{"num_key_value_heads", nullptr}}, "qwen3_moe"), "")->num_kv_heads, 4);
}

TEST(ModelConfigMoeTest, FieldsOfTheFile) {
  for (const char* key : {"num_experts", "num_local_experts"}) {
    for (const char* type : {"mixtral", "qwen2_moe", "qwen3_moe"}) {
      const MoeConfig moe = ParseExperts({{key, 16}, {"num_experts_per_tok", 16}}, type);
      EXPECT_EQ(moe.num_experts, 16);
      EXPECT_EQ(moe.num_experts_per_tok, 16);
    }
  }
  const json sizes = {{"moe_intermediate_size", 24}, {"norm_topk_prob", true}};
  EXPECT_EQ(ParseExperts(sizes, "qwen3_moe").intermediate_size, 24);
  EXPECT_TRUE(ParseExperts(sizes, "qwen3_moe").norm_topk_prob);
  EXPECT_TRUE(ParseExperts(sizes, "qwen2_moe").norm_topk_prob);
  EXPECT_EQ(ParseExperts({{"shared_expert_intermediate_size", 0}}, "qwen2_moe")
                .shared_expert_intermediate_size,
            0);
  // What only training reads, and what other families' files say and means nothing.
  EXPECT_EQ(ParseExperts({{"router_jitter_noise", 0.5},
                          {"router_aux_loss_coef", 0.1},
                          {"norm_topk_prob", true},
                          {"n_group", 1},
                          {"routed_scaling_factor", 1},
                          {"scoring_func", "softmax"}},
                         "mixtral")
                .num_experts,
            8);
}

TEST(ModelConfigMoeTest, WhichLayersHaveExperts) {
  EXPECT_THAT(ParseExperts({{"mlp_only_layers", {0, 2, 99}}}, "qwen2_moe").is_moe_layer,
              ElementsAre(false, true, false, true));
  EXPECT_THAT(ParseExperts({{"decoder_sparse_step", 2}}, "qwen3_moe").is_moe_layer,
              ElementsAre(false, true, false, true));
  EXPECT_THAT(ParseExperts({{"decoder_sparse_step", 2}, {"mlp_only_layers", {3}}}, "qwen3_moe")
                  .is_moe_layer,
              ElementsAre(false, true, false, false));
  EXPECT_THAT(ParseExperts({{"mlp_only_layers", json::array()}}, "qwen3_moe").is_moe_layer,
              Each(true));
  EXPECT_FALSE(Parse({{"decoder_sparse_step", 5}}, "qwen3_moe").moe.has_value());
  EXPECT_FALSE(Parse({{"num_experts", 8}}, "llama").moe.has_value());
}

TEST(ModelConfigMoeTest, SlidingWindows) {
  EXPECT_THAT(Parse({{"sliding_window", 32}}, "mixtral").sliding_window, Each(32));
  for (const char* type : {"qwen2_moe", "qwen3_moe"}) {
    EXPECT_THAT(Parse({{"sliding_window", 0}}, type).sliding_window, Each(0));
    EXPECT_THAT(Parse({{"use_sliding_window", false}, {"sliding_window", 32}}, type).sliding_window,
                Each(0));
    const json layers = {
        {"use_sliding_window", true},
        {"sliding_window", 32},
        {"layer_types",
         {"sliding_attention", "full_attention", "full_attention", "full_attention"}}};
    EXPECT_THAT(Parse(layers, type).sliding_window, ElementsAre(32, 0, 0, 0));
  }
}

TEST(ModelConfigMoeTest, Parameters) {
  const json sizes = {{"num_experts", 4},           {"num_experts_per_tok", 3},
                      {"moe_intermediate_size", 8}, {"shared_expert_intermediate_size", 40},
                      {"mlp_only_layers", {1}},     {"qkv_bias", false}};
  const ModelConfig config = Parse(sizes, "qwen2_moe");
  const int64_t attention = 2 * 64 + 64 * (64 + 2 * 32) + 64 * 64;
  const int64_t expert = 3 * 64 * 8;
  const int64_t shared = 3 * 64 * 40 + 64;
  const int64_t rest = 4 * attention + 3 * (4 * 64 + shared) + 3 * 64 * 96 + 2 * 128 * 64 + 64;
  EXPECT_EQ(config.num_parameters(), rest + 3 * 4 * expert);
  EXPECT_EQ(config.num_active_parameters(), rest + 3 * 3 * expert);
  const ModelConfig dense = Parse(json::object(), "llama");
  EXPECT_EQ(dense.num_active_parameters(), dense.num_parameters());
}

struct Refusal {
  json changes;
  std::vector<std::string> parts;  // of the message
  const char* model_type = "qwen3_moe";
};

void ExpectRefused(const Refusal& refusal, absl::StatusCode code) {
  const auto config = ParseModelConfig(With(refusal.changes, refusal.model_type), "config.json");
  ASSERT_FALSE(config.ok()) << refusal.changes;
  const std::string message(config.status().message());
  EXPECT_EQ(config.status().code(), code) << message;
  for (const std::string& part : refusal.parts) EXPECT_THAT(message, HasSubstr(part));
}

TEST(ModelConfigMoeTest, UnsupportedValuesAreRefusedByName) {
  const Refusal refusals[] = {
      {{{"hidden_act", "gelu"}}, {"hidden_act", "gelu"}, "mixtral"},
      {{{"n_group", 8}}, {"n_group 8 of a qwen3_moe model"}},
      {{{"topk_group", 4}}, {"topk_group 4"}},
      {{{"scoring_func", "sigmoid"}}, {"scoring_func", "sigmoid", "supported: \"softmax\""}},
      {{{"routed_scaling_factor", 2.5}}, {"routed_scaling_factor 2.5"}},
      {{{"n_shared_experts", 1}}, {"n_shared_experts 1"}},
      {{{"first_k_dense_replace", 1}}, {"first_k_dense_replace 1"}},
      {{{"norm_topk_prob", false}}, {"norm_topk_prob false of a mixtral"}, "mixtral"},
      {{{"shared_expert_intermediate_size", 64}}, {"shared_expert_intermediate_size 64"}},
      {{{"use_sliding_window", true}, {"sliding_window", 16}}, {"layer_types"}, "qwen2_moe"},
      {{{"attention_bias", true}}, {"attention_bias true of a mixtral"}, "mixtral"},
      {{{"mlp_bias", true}}, {"mlp_bias true"}, "qwen2_moe"},
  };
  for (const Refusal& refusal : refusals) ExpectRefused(refusal, absl::StatusCode::kUnimplemented);
}

TEST(ModelConfigMoeTest, AbsurdValuesAreRefusedWithValueAndLimit) {
  const Refusal refusals[] = {
      {{{"num_experts", 0}}, {"num_experts is 0", "2..1024"}},
      {{{"num_experts", 1025}}, {"num_experts is 1025", "2..1024"}},
      {{{"num_local_experts", -8}}, {"num_local_experts is -8", "2..1024"}, "mixtral"},
      {{{"num_local_experts", 8}, {"num_experts", 16}},
       {"num_local_experts is 8, num_experts is 16"}},
      {{{"num_experts", 4}, {"num_experts_per_tok", 5}}, {"num_experts_per_tok is 5", "1..4"}},
      {{{"num_experts", 4}}, {"num_experts_per_tok is missing", "8", "num_experts 4"}},
      {{{"num_experts_per_tok", 0}}, {"num_experts_per_tok is 0"}},
      {{{"moe_intermediate_size", 0}}, {"moe_intermediate_size is 0", "1..1048576"}},
      {{{"moe_intermediate_size", 1e18}}, {"moe_intermediate_size"}},
      {{{"shared_expert_intermediate_size", -1}},
       {"shared_expert_intermediate_size is -1", "0..1048576"},
       "qwen2_moe"},
      {{{"decoder_sparse_step", 0}}, {"decoder_sparse_step is 0"}},
      {{{"mlp_only_layers", {-1}}}, {"mlp_only_layers is -1", "0..1023"}},
      {{{"mlp_only_layers", "all"}}, {"mlp_only_layers"}},
      {{{"norm_topk_prob", 1}}, {"norm_topk_prob is 1"}},
  };
  for (const Refusal& refusal : refusals) {
    ExpectRefused(refusal, absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace nibble::engine
