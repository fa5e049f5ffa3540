// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Whether a model splits, and in words what is in the way.

#include <algorithm>
#include <string>

#include "fmt/ranges.h"

#include "engine/model/shard.h"

namespace nibble::engine {
namespace {

struct Obstacle {
  std::string_view dimension;  // as config.json calls it; empty: none
  int64_t value = 0;
};

std::string List(const std::vector<int64_t>& sizes) {
  return sizes.empty() ? "none" : fmt::format("{}", fmt::join(sizes, ", "));
}

bool HasDenseLayers(const ModelConfig& config) {
  if (!config.moe.has_value()) return true;
  const std::vector<bool>& is_moe = config.moe->is_moe_layer;
  return std::find(is_moe.begin(), is_moe.end(), false) != is_moe.end();
}

std::string_view IntermediateName(const ModelConfig& config) {
  return config.architecture == Architecture::kMixtral ? "intermediate_size"
                                                       : "moe_intermediate_size";
}

// What all but the experts are cut into `size` parts of.
Obstacle FindObstacle(const ModelConfig& config, int64_t size) {
  if (config.num_heads % size != 0) return {"num_attention_heads", config.num_heads};
  if (config.num_kv_heads % size != 0 && size % config.num_kv_heads != 0) {
    return {"num_key_value_heads", config.num_kv_heads};
  }
  if (HasDenseLayers(config) && config.intermediate_size % size != 0) {
    return {"intermediate_size", config.intermediate_size};
  }
  if (config.moe.has_value() && config.moe->shared_expert_intermediate_size % size != 0) {
    return {"shared_expert_intermediate_size", config.moe->shared_expert_intermediate_size};
  }
  if (config.vocab_size < size) return {"vocab_size", config.vocab_size};
  return {};
}

int64_t SlotsOrExperts(const ModelConfig& config, int64_t num_slots) {
  return num_slots == 0 ? config.moe->num_experts : num_slots;
}

bool OnGroups(int64_t k, int64_t num_parts, int64_t group_size) {
  return num_parts == 1 || group_size >= k ||
         (k % num_parts == 0 && k / num_parts % group_size == 0);
}

bool ExpertsSplit(const ModelConfig& config, int64_t size, int64_t expert_size, int64_t num_slots,
                  int64_t group_size) {
  if (!config.moe.has_value()) return expert_size == 1;
  const int64_t intermediate = config.moe->intermediate_size;
  return size % expert_size == 0 && num_slots % expert_size == 0 &&
         intermediate % (size / expert_size) == 0 &&
         OnGroups(intermediate, size / expert_size, group_size);
}

// Into how many parts the experts can be cut by so many ranks.
std::vector<int64_t> ExpertSizesThatSplit(const ModelConfig& config, int64_t size,
                                          int64_t num_slots, int64_t group_size) {
  std::vector<int64_t> sizes;
  for (int64_t expert_size = 1; expert_size <= size; ++expert_size) {
    if (ExpertsSplit(config, size, expert_size, num_slots, group_size)) {
      sizes.push_back(expert_size);
    }
  }
  return sizes;
}

// Sizes of groups that can share the model, its experts in one way or another.
std::vector<int64_t> SizesThatSplit(const ModelConfig& config, int64_t num_slots,
                                    int64_t expert_group_size) {
  std::vector<int64_t> sizes;
  for (int64_t size = 1; size <= config.num_heads; ++size) {
    if (FindObstacle(config, size).dimension.empty() &&
        !ExpertSizesThatSplit(config, size, num_slots, expert_group_size).empty()) {
      sizes.push_back(size);
    }
  }
  return sizes;
}

absl::Status CheckStages(const ModelConfig& config, const RankPlace& place) {
  if (place.num_stages < 1 || place.stage < 0 || place.stage >= place.num_stages) {
    return InvalidArgument("stage {} of a pipeline of {}, must be one of 0..{}", place.stage,
                           place.num_stages, place.num_stages - 1);
  }
  if (place.num_stages > config.num_layers) {
    return InvalidArgument(
        "the model does not split into {} pipeline stages: its num_hidden_layers is {}, a stage "
        "has one or more",
        place.num_stages, config.num_layers);
  }
  return absl::OkStatus();
}

absl::Status CheckExperts(const ModelConfig& config, const RankPlace& place, int64_t num_slots) {
  if (place.expert_size < 1 || place.size % place.expert_size != 0) {
    return InvalidArgument(
        "the expert-parallel size is {}, must divide the tensor-parallel size {}",
        place.expert_size, place.size);
  }
  if (!config.moe.has_value()) {
    if (place.expert_size == 1) return absl::OkStatus();
    return InvalidArgument("the expert-parallel size is {}, must be 1: a {} model has no experts",
                           place.expert_size, config.model_type);
  }
  const std::string sizes = List(ExpertSizesThatSplit(config, place.size, num_slots, 1));
  if (num_slots % place.expert_size != 0) {
    return InvalidArgument(
        "the model's experts do not split into {} parts: {} is {}; expert-parallel sizes that do "
        "with {} ranks are {}",
        place.expert_size,
        num_slots == config.moe->num_experts ? "its number of experts" : "the layout's num_slots",
        num_slots, place.size, sizes);
  }
  if (config.moe->intermediate_size % place.moe_tp_size() != 0) {
    return InvalidArgument(
        "the model's experts do not split into {} slices each: its {} is {}; expert-parallel sizes "
        "that do with {} ranks are {}",
        place.moe_tp_size(), IntermediateName(config), config.moe->intermediate_size, place.size,
        sizes);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckSplit(const ModelConfig& config, const RankPlace& place, int64_t num_slots) {
  if (place.size < 1 || place.rank < 0 || place.rank >= place.size) {
    return InvalidArgument("rank {} of a tensor-parallel group of {}, must be one of 0..{}",
                           place.rank, place.size, place.size - 1);
  }
  NIBBLE_RETURN_IF_ERROR(CheckStages(config, place));
  if (config.moe.has_value()) num_slots = SlotsOrExperts(config, num_slots);
  const Obstacle obstacle = FindObstacle(config, place.size);
  if (!obstacle.dimension.empty()) {
    return InvalidArgument(
        "the model does not split into {} ranks: its {} is {}; tensor-parallel sizes that do are "
        "{}",
        place.size, obstacle.dimension, obstacle.value, List(SizesThatSplit(config, num_slots, 1)));
  }
  return CheckExperts(config, place, num_slots);
}

absl::StatusOr<int> ChooseExpertSize(const ModelConfig& config, int size, int64_t group_size,
                                     int64_t num_slots) {
  if (!config.moe.has_value()) return 1;
  num_slots = SlotsOrExperts(config, num_slots);
  group_size = std::max<int64_t>(group_size, 1);
  const std::vector<int64_t> sizes = ExpertSizesThatSplit(config, size, num_slots, group_size);
  if (!sizes.empty()) return static_cast<int>(sizes.front());
  return InvalidArgument(
      "the model's experts do not split into {} ranks: there are {} of {} {}{}; tensor-parallel "
      "sizes that do are {}",
      size, num_slots, IntermediateName(config), config.moe->intermediate_size,
      group_size > 1 ? fmt::format(", cut between groups of {} that share a scale", group_size)
                     : "",
      List(SizesThatSplit(config, num_slots, group_size)));
}

absl::Status CheckOnGroups(const ModelConfig& config, const RankPlace& place,
                           std::string_view module, const MatrixShare& share, int64_t group_size,
                           int64_t num_slots) {
  // One group of all channels is one scale a row, which every part can have.
  if (share.has_all_columns() || group_size >= share.k) return absl::OkStatus();
  // The parts are equal: what cuts one rank's groups cuts another's too.
  if (share.columns.size() % group_size == 0) return absl::OkStatus();
  // Slices of an expert are of as many ranks as share it.
  const bool is_expert = ExpertOf(module).has_value();
  const int64_t num_parts = share.k / share.columns.size();
  if (config.moe.has_value()) num_slots = SlotsOrExperts(config, num_slots);
  std::vector<int64_t> sizes;
  if (is_expert) {
    sizes = ExpertSizesThatSplit(config, place.size, num_slots, group_size);
  } else {
    sizes = SizesThatSplit(config, num_slots, 1);
    std::erase_if(sizes, [&](int64_t size) { return !OnGroups(share.k, size, group_size); });
  }
  return InvalidArgument(
      "{}: its {} input channels in {} {} are {} each (rank {} has {}..{}), which cuts groups of "
      "{} that share a scale; {}-parallel sizes that do not are {}",
      module, share.k, num_parts, is_expert ? "slices" : "ranks", share.columns.size(), place.rank,
      share.columns.begin, share.columns.end - 1, group_size, is_expert ? "expert" : "tensor",
      List(sizes));
}

absl::Status CheckExpertsOnGroups(const ModelConfig& config, const RankPlace& place,
                                  int64_t group_size, int64_t num_slots) {
  if (!config.moe.has_value() || group_size <= 0) return absl::OkStatus();
  const std::string module = FirstExpertDown(config);
  return CheckOnGroups(config, place, module, *ShareOf(config, place, module), group_size,
                       num_slots);
}

std::string FirstExpertDown(const ModelConfig& config) {
  const std::vector<bool>& is_moe = config.moe->is_moe_layer;
  return fmt::format("model.layers.{}.{}",
                     std::find(is_moe.begin(), is_moe.end(), true) - is_moe.begin(),
                     config.architecture == Architecture::kMixtral ? "block_sparse_moe.experts.0.w2"
                                                                   : "mlp.experts.0.down_proj");
}

}  // namespace nibble::engine
