// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <algorithm>

#include "engine/model/model_config_parts.h"

namespace nibble::engine {
namespace {

constexpr int64_t kMaxExperts = 1 << 10;  // what routing takes (kernels/moe/route.h)
constexpr int64_t kMaxIntermediate = 1 << 20;
constexpr int64_t kMaxLayers = 1 << 10;

enum class NormTopk { kAlways, kFromFile };

// How an architecture scores and stores experts. All of them choose by a softmax over all experts.
// Sizes are what transformers' config classes take for an absent key.
struct MoeInfo {
  Architecture architecture;
  int64_t default_experts;
  int64_t default_experts_per_tok;
  NormTopk norm_topk;                   // norm_topk_prob; an absent key is false
  int64_t default_intermediate;         // moe_intermediate_size; 0: it is intermediate_size
  int64_t default_shared_intermediate;  // 0: there is no shared expert
};
constexpr MoeInfo kMoeArchitectures[] = {
    {Architecture::kMixtral, 8, 2, NormTopk::kAlways, 0, 0},
    {Architecture::kQwen2Moe, 60, 4, NormTopk::kFromFile, 1408, 5632},
    {Architecture::kQwen3Moe, 128, 8, NormTopk::kFromFile, 768, 0},
};

// What models of other families say of their experts, and the value that changes nothing.
struct Neutral {
  const char* key;
  nlohmann::json value;
};

void RefuseUnless(const Neutral& neutral, ConfigReader* reader, const ModelConfig& config) {
  const nlohmann::json* value = reader->Find(neutral.key);
  if (value == nullptr || *value == neutral.value) return;
  reader->Fail(Unimplemented("{}: {} {} of a {} model is not supported (supported: {})",
                             reader->where(), neutral.key, Quote(*value), config.model_type,
                             Quote(neutral.value)));
}

void RefuseOtherRouting(const MoeInfo& info, ConfigReader* reader, const ModelConfig& config) {
  const Neutral neutrals[] = {
      {"n_group", 1},
      {"topk_group", 1},
      {"n_shared_experts", 0},
      {"first_k_dense_replace", 0},
      {"scoring_func", "softmax"},
      {"routed_scaling_factor", 1.0},
  };
  for (const Neutral& neutral : neutrals) RefuseUnless(neutral, reader, config);
  if (info.norm_topk == NormTopk::kAlways) {
    RefuseUnless({"norm_topk_prob", true}, reader, config);
  }
  if (info.default_shared_intermediate == 0) {
    RefuseUnless({"shared_expert_intermediate_size", 0}, reader, config);
  }
}

// Either name, as transformers has both; the two must agree.
int64_t ParseNumExperts(int64_t default_value, ConfigReader* reader) {
  const int64_t local = reader->Int("num_local_experts", 2, kMaxExperts, default_value);
  const int64_t number = reader->Int("num_experts", 2, kMaxExperts, local);
  if (reader->Has("num_local_experts") && number != local) {
    reader->Fail(InvalidArgument("{}: num_local_experts is {}, num_experts is {}", reader->where(),
                                 local, number));
  }
  return number;
}

std::vector<bool> ParseMoeLayers(ConfigReader* reader, const ModelConfig& config) {
  std::vector<bool> is_moe(static_cast<size_t>(config.num_layers), true);
  if (config.architecture == Architecture::kMixtral) return is_moe;
  const int64_t step = reader->Int("decoder_sparse_step", 1, INT32_MAX, 1);
  for (int64_t l = 0; l < config.num_layers; ++l) {
    is_moe[static_cast<size_t>(l)] = (l + 1) % step == 0;
  }
  // A number beyond the last layer says nothing, as in transformers.
  for (const int32_t l : reader->Ids("mlp_only_layers", kMaxLayers - 1, kMaxLayers)) {
    if (l < config.num_layers) is_moe[static_cast<size_t>(l)] = false;
  }
  return is_moe;
}

}  // namespace

int64_t MoeConfig::CountParameters(int64_t hidden_size, int64_t experts) const {
  int64_t count = num_experts * hidden_size;  // router
  count += experts * 3 * hidden_size * intermediate_size;
  if (shared_expert_intermediate_size > 0) {
    count += 3 * hidden_size * shared_expert_intermediate_size + hidden_size;
  }
  return count;
}

std::optional<MoeConfig> ParseMoe(ConfigReader* reader, const ModelConfig& config) {
  const auto* const info =
      std::find_if(std::begin(kMoeArchitectures), std::end(kMoeArchitectures),
                   [&](const MoeInfo& i) { return i.architecture == config.architecture; });
  if (info == std::end(kMoeArchitectures)) return std::nullopt;
  RefuseOtherRouting(*info, reader, config);
  MoeConfig moe;
  moe.num_experts = ParseNumExperts(info->default_experts, reader);
  moe.num_experts_per_tok =
      reader->Int("num_experts_per_tok", 1, moe.num_experts, info->default_experts_per_tok);
  if (reader->ok() && moe.num_experts_per_tok > moe.num_experts) {
    reader->Fail(InvalidArgument(
        "{}: num_experts_per_tok is missing, its default {} is more than num_experts {}",
        reader->where(), moe.num_experts_per_tok, moe.num_experts));
  }
  moe.intermediate_size = config.intermediate_size;
  if (info->default_intermediate > 0) {
    moe.intermediate_size =
        reader->Int("moe_intermediate_size", 1, kMaxIntermediate, info->default_intermediate);
  }
  moe.norm_topk_prob =
      info->norm_topk == NormTopk::kAlways || reader->Bool("norm_topk_prob", false);
  if (info->default_shared_intermediate > 0) {
    moe.shared_expert_intermediate_size = reader->Int(
        "shared_expert_intermediate_size", 0, kMaxIntermediate, info->default_shared_intermediate);
  }
  moe.is_moe_layer = ParseMoeLayers(reader, config);
  if (std::find(moe.is_moe_layer.begin(), moe.is_moe_layer.end(), true) == moe.is_moe_layer.end()) {
    return std::nullopt;
  }
  return moe;
}

}  // namespace nibble::engine
