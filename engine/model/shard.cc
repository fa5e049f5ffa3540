// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/shard.h"

#include "fmt/ranges.h"

#include "base/check.h"

namespace nibble::engine {
namespace {

// The rank's part of `count` things, in order; even when the size divides it.
Range PartOf(int64_t count, const RankPlace& place) {
  return {place.rank * count / place.size, (place.rank + 1) * count / place.size};
}

Range Scaled(Range range, int64_t factor) { return {range.begin * factor, range.end * factor}; }

// Whether this many ranks can share the model, and if not, which dimension forbids it.
struct Obstacle {
  std::string_view dimension;  // as config.json calls it; empty: none
  int64_t value = 0;
};

Obstacle FindObstacle(const ModelConfig& config, int64_t size) {
  if (config.num_heads % size != 0) return {"num_attention_heads", config.num_heads};
  if (config.num_kv_heads % size != 0 && size % config.num_kv_heads != 0) {
    return {"num_key_value_heads", config.num_kv_heads};
  }
  if (config.intermediate_size % size != 0) return {"intermediate_size", config.intermediate_size};
  if (config.vocab_size < size) return {"vocab_size", config.vocab_size};
  return {};
}

// Sizes of groups that can share the model, and cut `k` between groups of `group_size` only.
std::vector<int64_t> SizesThatSplit(const ModelConfig& config, int64_t k, int64_t group_size) {
  std::vector<int64_t> sizes;
  for (int64_t size = 1; size <= config.num_heads; ++size) {
    const bool on_groups = size == 1 || (k % size == 0 && k / size % group_size == 0);
    if (on_groups && FindObstacle(config, size).dimension.empty()) sizes.push_back(size);
  }
  return sizes;
}

}  // namespace

absl::Status CheckSplit(const ModelConfig& config, const RankPlace& place) {
  if (place.size < 1 || place.rank < 0 || place.rank >= place.size) {
    return InvalidArgument("rank {} of a tensor-parallel group of {}, must be one of 0..{}",
                           place.rank, place.size, place.size - 1);
  }
  const Obstacle obstacle = FindObstacle(config, place.size);
  if (obstacle.dimension.empty()) return absl::OkStatus();
  return InvalidArgument(
      "the model does not split into {} ranks: its {} is {}; tensor-parallel sizes that do are {}",
      place.size, obstacle.dimension, obstacle.value,
      fmt::join(SizesThatSplit(config, config.num_heads, 1), ", "));
}

ModelConfig RankConfig(const ModelConfig& config, const RankPlace& place) {
  NIBBLE_CHECK(FindObstacle(config, place.size).dimension.empty());
  ModelConfig own = config;
  own.num_heads = HeadsOf(config, place).size();
  own.num_kv_heads = KvHeadsOf(config, place).size();
  own.intermediate_size = config.intermediate_size / place.size;
  return own;
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

std::optional<MatrixShare> ShareOf(const ModelConfig& config, const RankPlace& place,
                                   std::string_view module) {
  const std::string_view name = module.substr(module.rfind('.') + 1);  // npos + 1 is 0
  const int64_t hidden = config.hidden_size;
  const int64_t q_size = config.num_heads * config.head_dim;
  const Range intermediate = PartOf(config.intermediate_size, place);
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
  if (name == "gate_proj" || name == "up_proj") {
    return MatrixShare{config.intermediate_size, hidden, intermediate, all};
  }
  if (name == "down_proj") {
    return MatrixShare{hidden, config.intermediate_size, all, intermediate};
  }
  if (name == "embed_tokens" || name == "lm_head") {
    return MatrixShare{config.vocab_size, hidden, VocabularyOf(config, place), all};
  }
  return std::nullopt;
}

absl::Status CheckOnGroups(const ModelConfig& config, const RankPlace& place,
                           std::string_view module, const MatrixShare& share, int64_t group_size) {
  // One group of all channels is one scale a row, which every part can have.
  if (share.has_all_columns() || group_size >= share.k) return absl::OkStatus();
  // The parts are equal: what cuts one rank's groups cuts another's too.
  if (share.columns.size() % group_size == 0) return absl::OkStatus();
  return InvalidArgument(
      "{}: its {} input channels in {} ranks are {} each (rank {} has {}..{}), which cuts groups "
      "of "
      "{} that share a scale; tensor-parallel sizes that do not are {}",
      module, share.k, place.size, share.columns.size(), place.rank, share.columns.begin,
      share.columns.end - 1, group_size,
      fmt::join(SizesThatSplit(config, share.k, group_size), ", "));
}

}  // namespace nibble::engine
