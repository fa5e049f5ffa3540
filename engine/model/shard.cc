// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/shard.h"

#include <algorithm>
#include <charconv>

#include "base/check.h"

namespace nibble::engine {
namespace {

// Part `index` of `count` things cut into `num_parts`, in order; even when num_parts divides it.
Range PartOf(int64_t count, int64_t index, int64_t num_parts) {
  return {index * count / num_parts, (index + 1) * count / num_parts};
}

Range PartOf(int64_t count, const RankPlace& place) {
  return PartOf(count, place.rank, place.size);
}

Range Scaled(Range range, int64_t factor) { return {range.begin * factor, range.end * factor}; }

// The number that `text` is, or begins with before a dot.
std::optional<int64_t> LeadingNumber(std::string_view text) {
  int64_t number = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || number < 0 || (rest != end && *rest != '.')) return std::nullopt;
  return number;
}

// gate, up and down projections of `intermediate` channels, of which a rank has `own`.
std::optional<MatrixShare> ShareOfFeedForward(std::string_view name, int64_t hidden,
                                              int64_t intermediate, const Range& own) {
  if (name == "gate_proj" || name == "up_proj" || name == "w1" || name == "w3") {
    return MatrixShare{intermediate, hidden, own, {0, hidden}};
  }
  if (name == "down_proj" || name == "w2") {
    return MatrixShare{hidden, intermediate, {0, hidden}, own};
  }
  return std::nullopt;
}

}  // namespace

ModelConfig RankConfig(const ModelConfig& config, const RankPlace& place) {
  NIBBLE_CHECK(config.num_heads % place.size == 0 && place.num_stages <= config.num_layers);
  ModelConfig own = config;
  own.num_heads = HeadsOf(config, place).size();
  own.num_kv_heads = KvHeadsOf(config, place).size();
  own.intermediate_size = config.intermediate_size / place.size;
  const Range layers = LayersOf(config, place);
  own.num_layers = layers.size();
  const auto cut = [&layers](const auto& of_layers, auto* own_layers) {
    own_layers->assign(of_layers.begin() + layers.begin, of_layers.begin() + layers.end);
  };
  if (!config.sliding_window.empty()) cut(config.sliding_window, &own.sliding_window);
  if (config.moe.has_value()) {
    cut(config.moe->is_moe_layer, &own.moe->is_moe_layer);
    own.moe->intermediate_size = config.moe->intermediate_size / place.moe_tp_size();
    own.moe->shared_expert_intermediate_size =
        config.moe->shared_expert_intermediate_size / place.size;
  }
  return own;
}

Range LayersOf(const ModelConfig& config, const RankPlace& place) {
  const int64_t least = config.num_layers / place.num_stages;
  const int64_t num_larger = config.num_layers % place.num_stages;
  const int64_t begin = place.stage * least + std::min<int64_t>(place.stage, num_larger);
  return {begin, begin + least + (place.stage < num_larger ? 1 : 0)};
}

Range SlotsOf(int64_t num_slots, const RankPlace& place) {
  return PartOf(num_slots, place.expert_rank(), place.expert_size);
}

Range HeadsOf(const ModelConfig& config, const RankPlace& place) {
  return PartOf(config.num_heads, place);
}

Range KvHeadsOf(const ModelConfig& config, const RankPlace& place) {
  if (config.num_kv_heads >= place.size) return PartOf(config.num_kv_heads, place);
  const int64_t head = place.rank / (place.size / config.num_kv_heads);
  return {head, head + 1};
}

Range VocabularyOf(const ModelConfig& config, const RankPlace& place) {
  return PartOf(config.vocab_size, place);
}

std::optional<int64_t> LayerOf(std::string_view name) {
  constexpr std::string_view kLayers = "model.layers.";
  if (!name.starts_with(kLayers)) return std::nullopt;
  return LeadingNumber(name.substr(kLayers.size()));
}

std::optional<int64_t> ExpertOf(std::string_view name) {
  constexpr std::string_view kExperts = ".experts.";
  const size_t at = name.find(kExperts);
  if (at == std::string_view::npos) return std::nullopt;
  return LeadingNumber(name.substr(at + kExperts.size()));
}

bool IsOnStage(const ModelConfig& config, const RankPlace& place, std::string_view name) {
  if (const auto layer = LayerOf(name); layer.has_value()) {
    const Range layers = LayersOf(config, place);
    return *layer >= layers.begin && *layer < layers.end;
  }
  if (name.starts_with("model.embed_tokens")) {
    return place.is_first_stage() || (place.is_last_stage() && config.tie_word_embeddings);
  }
  return place.is_last_stage();
}

std::optional<MatrixShare> ShareOf(const ModelConfig& config, const RankPlace& place,
                                   std::string_view module) {
  const std::string_view name = module.substr(module.rfind('.') + 1);  // npos + 1 is 0
  const int64_t hidden = config.hidden_size;
  const int64_t q_size = config.num_heads * config.head_dim;
  const Range all = {0, hidden};
  if (name == "q_proj") {
    return MatrixShare{q_size, hidden, Scaled(HeadsOf(config, place), config.head_dim), all};
  }
  if (name == "k_proj" || name == "v_proj") {
    return MatrixShare{config.num_kv_heads * config.head_dim, hidden,
                       Scaled(KvHeadsOf(config, place), config.head_dim), all};
  }
  if (name == "o_proj") {
    return MatrixShare{hidden, q_size, all, Scaled(HeadsOf(config, place), config.head_dim)};
  }
  if (name == "embed_tokens" || name == "lm_head") {
    return MatrixShare{config.vocab_size, hidden, VocabularyOf(config, place), all};
  }
  if (config.moe.has_value() && ExpertOf(module).has_value()) {
    const int64_t intermediate = config.moe->intermediate_size;
    return ShareOfFeedForward(name, hidden, intermediate,
                              PartOf(intermediate, place.moe_tp_rank(), place.moe_tp_size()));
  }
  int64_t intermediate = config.intermediate_size;
  if (module.find(".shared_expert.") != std::string_view::npos && config.moe.has_value()) {
    intermediate = config.moe->shared_expert_intermediate_size;
  }
  return ShareOfFeedForward(name, hidden, intermediate, PartOf(intermediate, place));
}

}  // namespace nibble::engine
