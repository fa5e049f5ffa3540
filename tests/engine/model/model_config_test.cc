// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/model_config.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/model/safetensors.h"

namespace nibble::engine {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Scaling = kernels::RopeConfig::Scaling;

// A small valid config with `changes` merged in (null removes a key: JSON merge patch).
std::string With(const json& changes, const char* model_type = "llama") {
  static const json kClasses = {
      {"llama", "LlamaForCausalLM"},       {"mistral", "MistralForCausalLM"},
      {"qwen2", "Qwen2ForCausalLM"},       {"qwen3", "Qwen3ForCausalLM"},
      {"mixtral", "MixtralForCausalLM"},   {"qwen2_moe", "Qwen2MoeForCausalLM"},
      {"qwen3_moe", "Qwen3MoeForCausalLM"}};
  json config = {{"architectures", {kClasses[model_type]}},
                 {"model_type", model_type},
                 {"hidden_size", 64},
                 {"intermediate_size", 96},
                 {"num_hidden_layers", 4},
                 {"num_attention_heads", 4},
                 {"num_key_value_heads", 2},
                 {"vocab_size", 128},
                 {"max_position_embeddings", 256},
                 {"rms_norm_eps", 1e-5},
                 {"torch_dtype", "bfloat16"}};
  config.merge_patch(changes);
  return config.dump();
}

ModelConfig Parse(const std::string& text) {
  auto config = ParseModelConfig(text, "config.json");
  EXPECT_TRUE(config.ok()) << config.status();
  return config.value_or(ModelConfig());
}

TEST(ModelConfigTest, BundledModel) {
  const auto config = LoadModelConfig(NIBBLE_SOURCE_DIR "/models/stories-llama");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->architecture, Architecture::kLlama);
  EXPECT_EQ(config->num_layers, 4);
  EXPECT_EQ(config->head_dim, 64);
  EXPECT_EQ(config->rope.rotary_dim, 64);
  EXPECT_EQ(config->dtype, DType::kBf16);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(4092, 4095));
  EXPECT_EQ(config->bos_token_id, 4091);
  EXPECT_FALSE(config->quantization.has_value());
  EXPECT_THAT(config->sliding_window, ElementsAre(0, 0, 0, 0));
}

TEST(ModelConfigTest, NumParametersCountsEveryFixture) {
  for (const char* name :
       {"tests/fixtures/models/llama", "tests/fixtures/models/llama3",
        "tests/fixtures/models/llama_linear_bias", "tests/fixtures/models/mistral",
        "tests/fixtures/models/qwen2", "tests/fixtures/models/qwen3",
        "tests/fixtures/models/mixtral", "tests/fixtures/models/mixtral_fused",
        "tests/fixtures/models/qwen2_moe", "tests/fixtures/models/qwen3_moe",
        "tests/fixtures/models/qwen3_moe_norm", "models/stories-mixtral"}) {
    const std::string dir = std::string(NIBBLE_SOURCE_DIR "/") + name;
    const auto config = LoadModelConfig(dir);
    ASSERT_TRUE(config.ok()) << config.status();
    const auto checkpoint = Checkpoint::Open(dir);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    int64_t count = 0;
    for (const TensorView& tensor : checkpoint->tensors()) count += tensor.num_elements();
    EXPECT_EQ(config->num_parameters(), count) << name;
  }
}

TEST(ModelConfigTest, FixturesOfBothTransformersForms) {
  const std::string dir = NIBBLE_SOURCE_DIR "/tests/fixtures/models/";
  const auto llama3 = LoadModelConfig(dir + "llama3");
  ASSERT_TRUE(llama3.ok()) << llama3.status();
  EXPECT_EQ(llama3->rope.scaling, Scaling::kLlama3);
  EXPECT_EQ(llama3->rope.theta, 500.0);
  EXPECT_EQ(llama3->rope.factor, 8.0);
  EXPECT_EQ(llama3->rope.original_max_position, 16);
  EXPECT_EQ(llama3->head_dim, 24);
  EXPECT_TRUE(llama3->tie_word_embeddings);
  const auto linear = LoadModelConfig(dir + "llama_linear_bias");  // rope_parameters, dtype
  ASSERT_TRUE(linear.ok()) << linear.status();
  EXPECT_EQ(linear->rope.scaling, Scaling::kLinear);
  EXPECT_EQ(linear->rope.factor, 4.0);
  EXPECT_EQ(linear->dtype, DType::kF16);
  EXPECT_TRUE(linear->qkv_bias && linear->o_bias && linear->mlp_bias);
  const auto qwen2 = LoadModelConfig(dir + "qwen2");
  ASSERT_TRUE(qwen2.ok()) << qwen2.status();
  EXPECT_THAT(qwen2->sliding_window, ElementsAre(0, 0, 9));
  EXPECT_TRUE(qwen2->qkv_bias && !qwen2->o_bias && !qwen2->qk_norm);
  const auto qwen3 = LoadModelConfig(dir + "qwen3");
  ASSERT_TRUE(qwen3.ok()) << qwen3.status();
  EXPECT_TRUE(qwen3->qk_norm && qwen3->qkv_bias && qwen3->o_bias);
}

TEST(ModelConfigTest, AbsentFieldsTakeTransformersDefaults) {
  const ModelConfig llama = Parse(With({{"num_key_value_heads", nullptr},
                                        {"max_position_embeddings", nullptr},
                                        {"rms_norm_eps", nullptr},
                                        {"torch_dtype", nullptr}}));
  EXPECT_EQ(llama.num_kv_heads, 4);
  EXPECT_EQ(llama.head_dim, 16);
  EXPECT_EQ(llama.max_position_embeddings, 2048);
  EXPECT_FLOAT_EQ(llama.rms_norm_eps, 1e-6F);
  EXPECT_EQ(llama.rope.theta, 10000.0);
  EXPECT_EQ(llama.dtype, DType::kF32);
  EXPECT_TRUE(llama.eos_token_ids.empty());
  EXPECT_EQ(Parse(With(json::object(), "qwen3")).head_dim, 128);
  EXPECT_EQ(Parse(With({{"architectures", nullptr}}, "qwen2")).architecture, Architecture::kQwen2);
}

TEST(ModelConfigTest, SlidingWindows) {
  EXPECT_THAT(Parse(With({{"sliding_window", 32}}, "mistral")).sliding_window,
              ElementsAre(32, 32, 32, 32));
  EXPECT_THAT(Parse(With(json::object(), "mistral")).sliding_window,
              ElementsAre(4096, 4096, 4096, 4096));
  // null says that there is none, which differs from an absent key.
  std::string text = With({{"sliding_window", -7}}, "mistral");
  text.replace(text.find("-7"), 2, "null");
  EXPECT_THAT(Parse(text).sliding_window, ElementsAre(0, 0, 0, 0));
  const json off = {{"use_sliding_window", false}, {"sliding_window", 32}};
  EXPECT_THAT(Parse(With(off, "qwen2")).sliding_window, ElementsAre(0, 0, 0, 0));
  const json on = {{"use_sliding_window", true}, {"sliding_window", 32}, {"max_window_layers", 3}};
  EXPECT_THAT(Parse(With(on, "qwen2")).sliding_window, ElementsAre(0, 0, 0, 32));
  // The class default of an absent key, as Mistral's; null beats it here too.
  const json on_absent = {{"use_sliding_window", true}, {"max_window_layers", 2}};
  for (const char* qwen : {"qwen2", "qwen3"}) {
    EXPECT_THAT(Parse(With(on_absent, qwen)).sliding_window, ElementsAre(0, 0, 4096, 4096));
    text = With({{"use_sliding_window", true}, {"sliding_window", -7}}, qwen);
    text.replace(text.find("-7"), 2, "null");
    EXPECT_THAT(Parse(text).sliding_window, ElementsAre(0, 0, 0, 0));
  }
  json types = on;
  types["layer_types"] = {"sliding_attention", "full_attention", "full_attention",
                          "full_attention"};
  EXPECT_THAT(Parse(With(types, "qwen3")).sliding_window, ElementsAre(32, 0, 0, 0));
}

TEST(ModelConfigTest, KeyValueHeadsOfAnAbsentKey) {
  const json absent = {
      {"num_attention_heads", 32}, {"hidden_size", 1024}, {"num_key_value_heads", nullptr}};
  json null = absent;
  null["num_key_value_heads"] = -7;
  const std::pair<const char*, int64_t> defaults[] = {
      {"llama", 32}, {"mistral", 8}, {"qwen2", 32}, {"qwen3", 32}};
  for (const auto& [type, num_kv_heads] : defaults) {
    EXPECT_EQ(Parse(With(absent, type)).num_kv_heads, num_kv_heads) << type;
    std::string text = With(null, type);
    text.replace(text.find("-7"), 2, "null");
    EXPECT_EQ(Parse(text).num_kv_heads, 32) << type;
  }
}

TEST(ModelConfigTest, RopeScalingForms) {
  EXPECT_EQ(Parse(With({{"rope_scaling", {{"type", "linear"}, {"factor", 2}}}})).rope.factor, 2.0);
  const json scaling = {{"rope_scaling", {{"type", "default"}}}, {"rope_theta", 5e5}};
  const ModelConfig plain = Parse(With(scaling));
  EXPECT_EQ(plain.rope.scaling, Scaling::kNone);
  EXPECT_EQ(plain.rope.theta, 5e5);
  const json both = {{"rope_theta", 5.0},
                     {"rope_scaling", {{"rope_type", "linear"}, {"factor", 2.0}}},
                     {"rope_parameters", {{"rope_type", "linear"}, {"factor", 2.0}}}};
  EXPECT_EQ(Parse(With(both)).rope.theta, 5.0);
}

TEST(ModelConfigTest, EndOfSequenceIds) {
  EXPECT_THAT(Parse(With({{"eos_token_id", 5}})).eos_token_ids, ElementsAre(5));
  EXPECT_THAT(Parse(With({{"eos_token_id", {5, 127}}})).eos_token_ids, ElementsAre(5, 127));
}

struct Refusal {
  json changes;
  std::vector<std::string> parts;  // of the message
  const char* model_type = "llama";
  bool unimplemented = false;
};

void ExpectRefused(const Refusal& refusal) {
  const auto config = ParseModelConfig(With(refusal.changes, refusal.model_type), "config.json");
  ASSERT_FALSE(config.ok()) << refusal.changes;
  const std::string message(config.status().message());
  EXPECT_EQ(config.status().code(), refusal.unimplemented ? absl::StatusCode::kUnimplemented
                                                          : absl::StatusCode::kInvalidArgument)
      << message;
  EXPECT_THAT(message, HasSubstr("config.json: "));
  for (const std::string& part : refusal.parts) EXPECT_THAT(message, HasSubstr(part));
}

TEST(ModelConfigTest, UnsupportedValuesAreRefusedByName) {
  const json layer_types = {
      {"layer_types", {"chunked_attention", "full_attention", "full_attention", "full_attention"}}};
  const Refusal refusals[] = {
      {{{"architectures", {"GemmaForCausalLM"}}, {"model_type", "gemma"}},
       {"GemmaForCausalLM", "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM"}},
      {{{"architectures", nullptr}, {"model_type", "gpt_oss"}},
       {"gpt_oss", "MixtralForCausalLM, Qwen2MoeForCausalLM, Qwen3MoeForCausalLM"}},
      {{{"hidden_act", "gelu"}}, {"hidden_act", "gelu", "supported: silu"}},
      {{{"rope_scaling", {{"rope_type", "yarn"}, {"factor", 4.0}}}},
       {"rope_scaling", "yarn", "default, linear, llama3"}},
      {{{"rope_scaling", {{"type", "dynamic"}}}}, {"dynamic"}},
      {{{"rope_parameters", {{"rope_type", "longrope"}}}}, {"rope_parameters", "longrope"}},
      {{{"rope_parameters", {{"full_attention", {{"rope_type", "default"}}}}}}, {"per layer type"}},
      {{{"partial_rotary_factor", 0.5}}, {"partial_rotary_factor", "0.5"}},
      {{{"sliding_window", 7}}, {"sliding_window 7 of a llama"}},
      {{{"attention_bias", true}}, {"attention_bias true of a mistral"}, "mistral"},
      {{{"mlp_bias", true}}, {"mlp_bias"}, "qwen2"},
      {layer_types, {"chunked_attention"}, "qwen2"},
      {{{"torch_dtype", "float64"}}, {"float64"}},
      {{{"use_mrope", true}}, {"use_mrope"}, "qwen2"},
  };
  for (Refusal refusal : refusals) {
    refusal.unimplemented = true;
    ExpectRefused(refusal);
  }
}

TEST(ModelConfigTest, AbsurdValuesAreRefusedWithValueAndLimit) {
  const Refusal refusals[] = {
      {{{"hidden_size", 0}}, {"hidden_size is 0", "1..131072"}},
      {{{"hidden_size", -64}}, {"hidden_size is -64"}},
      {{{"hidden_size", 64.5}}, {"64.5"}},
      {{{"hidden_size", "64"}}, {"\"64\""}},
      {{{"hidden_size", nullptr}}, {"hidden_size is missing"}},
      {{{"num_hidden_layers", 1099511627776}}, {"1099511627776", "1..1024"}},
      {{{"num_hidden_layers", 18446744073709551615U}}, {"18446744073709551615"}},
      {{{"num_attention_heads", 6}}, {"head_dim is missing", "64", "6"}},
      {{{"num_key_value_heads", 3}}, {"4 is not a multiple of num_key_value_heads 3"}},
      {{{"num_key_value_heads", 0}}, {"num_key_value_heads is 0"}},
      {{{"num_key_value_heads", nullptr}}, {"num_key_value_heads 32", "absent key"}, "qwen2"},
      {{{"head_dim", 15}}, {"head_dim is 15", "even"}},
      {{{"head_dim", 4096}}, {"head_dim is 4096", "1024"}},
      {{{"hidden_size", 60}, {"num_attention_heads", 4}}, {"head_dim is 15"}},
      {{{"vocab_size", 16777217}}, {"16777217", "16777216"}},
      {{{"rms_norm_eps", -1e-5}}, {"rms_norm_eps"}},
      {{{"rms_norm_eps", "nan"}}, {"rms_norm_eps is \"nan\""}},
      {{{"max_position_embeddings", 1e300}}, {"max_position_embeddings"}},
      {{{"tie_word_embeddings", 1}}, {"tie_word_embeddings is 1"}},
      {{{"eos_token_id", 128}}, {"eos_token_id is 128", "0..127"}},
      {{{"eos_token_id", {1, -1}}}, {"eos_token_id is -1"}},
      {{{"bos_token_id", "1"}}, {"bos_token_id"}},
      {{{"rope_theta", 0}}, {"rope_theta is 0"}},
      {{{"rope_scaling", 3}}, {"rope_scaling is 3"}},
      {{{"rope_scaling", {{"type", "linear"}}}}, {"factor is missing"}},
      {{{"rope_scaling", {{"type", "linear"}, {"factor", 0.5}}}}, {"factor is 0.5"}},
      {{{"rope_scaling",
         {{"type", "llama3"},
          {"factor", 8},
          {"low_freq_factor", 4},
          {"high_freq_factor", 4},
          {"original_max_position_embeddings", 16}}}},
       {"high_freq_factor 4 must exceed"}},
      {{{"rope_scaling", {{"type", "linear"}, {"factor", 2}}},
        {"rope_parameters", {{"rope_type", "default"}}}},
       {"rope_scaling and rope_parameters differ"}},
      {{{"model_type", "mistral"}}, {"LlamaForCausalLM", "mistral"}},
      {{{"architectures", nullptr}, {"model_type", nullptr}}, {"are missing"}},
      {{{"architectures", "LlamaForCausalLM"}}, {"architectures"}},
      {{{"use_sliding_window", true}, {"sliding_window", 0}}, {"sliding_window is 0"}, "qwen2"},
      {{{"layer_types", {"full_attention"}}}, {"1 entries for 4 layers"}, "qwen2"},
      {{{"layer_types",
         {"full_attention", "full_attention", "full_attention", "sliding_attention"}}},
       {"layer 3 slide, sliding_window is off"},
       "qwen2"},
  };
  for (const Refusal& refusal : refusals) ExpectRefused(refusal);
  for (const char* text : {"", "[]", "3", "{", "{\"rms_norm_eps\": NaN}"}) {
    EXPECT_EQ(ParseModelConfig(text, "config.json").status().code(),
              absl::StatusCode::kInvalidArgument)
        << text;
  }
}

TEST(GenerationConfigTest, ReadsWhatIsThere) {
  const auto config = LoadGenerationConfig(NIBBLE_SOURCE_DIR "/models/stories-llama");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->eos_token_ids, ElementsAre(4092, 4095));
  EXPECT_FLOAT_EQ(config->temperature.value_or(0), 0.7F);
  EXPECT_FLOAT_EQ(config->top_p.value_or(0), 0.9F);
  EXPECT_FALSE(config->top_k || config->min_p || config->max_new_tokens);
  const auto absent = LoadGenerationConfig(NIBBLE_SOURCE_DIR "/tests/fixtures/models/llama");
  ASSERT_TRUE(absent.ok()) << absent.status();
  EXPECT_FALSE(absent->temperature.has_value());
  EXPECT_EQ(ParseGenerationConfig(R"({"top_k":-1})", "g")->top_k, 0);
}

TEST(GenerationConfigTest, BadValuesAreRefused) {
  for (const char* text :
       {R"({"temperature":-1})", R"({"temperature":"hot"})", R"({"top_p":1.5})", R"({"top_k":-2})",
        R"({"min_p":2})", R"({"repetition_penalty":0})", R"({"max_new_tokens":0})",
        R"({"eos_token_id":-1})", R"({"eos_token_id":4294967296})", R"({"temperature":1e999})",
        "[]", ""}) {
    const auto config = ParseGenerationConfig(text, "generation_config.json");
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(config.status().message()), HasSubstr("generation_config.json"));
  }
}

// The values are every request's defaults: what a request may not say must not load.
TEST(GenerationConfigTest, LimitsAreThoseOfARequest) {
  const std::pair<const char*, const char*> refused[] = {
      {R"({"temperature":2.5})",
       "dir/generation_config.json: temperature is 2.5, must be in [0, 2]"},
      {R"({"top_p":0.0})", "dir/generation_config.json: top_p is 0, must be in (0, 1]"},
      {R"({"repetition_penalty":2.5})",
       "dir/generation_config.json: repetition_penalty is 2.5, must be in (0, 2]"},
      {R"({"min_p":1.5})", "dir/generation_config.json: min_p is 1.5, must be in [0, 1]"},
  };
  for (const auto& [text, message] : refused) {
    const auto config = ParseGenerationConfig(text, "dir/generation_config.json");
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_EQ(std::string(config.status().message()), message);
  }
  EXPECT_TRUE(ParseGenerationConfig(
                  R"({"temperature":2,"top_p":1,"min_p":1,"top_k":0,"repetition_penalty":2})", "g")
                  .ok());
}

}  // namespace
}  // namespace nibble::engine
