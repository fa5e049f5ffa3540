// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/moe/placement.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <string_view>
#include <utility>

#include "base/check.h"

namespace nibble::engine {
namespace {

// Something with a load that is put somewhere: a group of experts, or a copy of one.
struct Item {
  int32_t id = 0;  // of the group, or the expert: equal ids keep apart from each other
  double load = 0.0;
};

struct Bin {
  std::vector<Item> items;
  double load = 0.0;

  bool Holds(int32_t id) const {
    return std::any_of(items.begin(), items.end(), [&](const Item& item) { return item.id == id; });
  }
  void Add(const Item& item) {
    items.push_back(item);
    load += item.load;
  }
};

// For an item that all bins with room hold already. `room` is one of them. Of as many items as
// there are bins at most have one id, so another bin is without this one; it is full, and of its
// items at least two are not in `room`, which holds this id and fewer items. One of them moves:
// the one that leaves the heavier of both bins lightest.
void PlaceBySwap(const Item& item, Bin* room, std::vector<Bin>* bins) {
  double best = std::numeric_limits<double>::infinity();
  Bin* best_bin = nullptr;
  Item* best_place = nullptr;
  for (Bin& bin : *bins) {
    if (bin.Holds(item.id)) continue;
    for (Item& other : bin.items) {
      if (room->Holds(other.id)) continue;
      const double heavier = std::max(room->load + other.load, bin.load - other.load + item.load);
      if (best_place != nullptr && heavier >= best) continue;
      best = heavier;
      best_bin = &bin;
      best_place = &other;
    }
  }
  NIBBLE_CHECK(best_place != nullptr);
  room->Add(*best_place);
  best_bin->load += item.load - best_place->load;
  *best_place = item;
}

// The heaviest first, each to the lightest bin that has room and does not hold its id. Equal loads:
// in the order of `items`, to the first bin. Bins of one item take them as they come.
// REQUIRES items.size() to be a multiple of num_bins, and no id to be there more than num_bins
// times.
std::vector<Bin> Pack(std::vector<Item> items, int64_t num_bins) {
  const auto room = items.size() / static_cast<size_t>(num_bins);
  std::vector<Bin> bins(static_cast<size_t>(num_bins));
  if (room == 1) {
    for (size_t i = 0; i < items.size(); ++i) bins[i].Add(items[i]);
    return bins;
  }
  std::stable_sort(items.begin(), items.end(),
                   [](const Item& a, const Item& b) { return a.load > b.load; });
  for (const Item& item : items) {
    Bin* lightest = nullptr;  // of those with room
    Bin* lightest_without = nullptr;
    for (Bin& bin : bins) {
      if (bin.items.size() == room) continue;
      if (lightest == nullptr || bin.load < lightest->load) lightest = &bin;
      if (bin.Holds(item.id)) continue;
      if (lightest_without == nullptr || bin.load < lightest_without->load) lightest_without = &bin;
    }
    if (lightest_without != nullptr) {
      lightest_without->Add(item);
    } else {
      PlaceBySwap(item, lightest, &bins);
    }
  }
  return bins;
}

// One copy of each expert, and further ones up to `num_copies` in all: each of the expert with the
// largest load per copy that has fewer than `max_copies`. Equal: of the one with fewer copies, then
// of the first.
std::vector<Item> Replicate(const std::vector<Item>& experts, int64_t num_copies,
                            int64_t max_copies) {
  std::vector<int64_t> counts(experts.size(), 1);
  std::vector<size_t> expert_of_copy(experts.size());
  std::iota(expert_of_copy.begin(), expert_of_copy.end(), size_t{0});
  while (static_cast<int64_t>(expert_of_copy.size()) < num_copies) {
    size_t chosen = experts.size();
    for (size_t i = 0; i < experts.size(); ++i) {
      if (counts[i] == max_copies) continue;
      if (chosen == experts.size()) {
        chosen = i;
        continue;
      }
      const double load = experts[i].load / static_cast<double>(counts[i]);
      const double most = experts[chosen].load / static_cast<double>(counts[chosen]);
      if (load > most || (load == most && counts[i] < counts[chosen])) chosen = i;
    }
    ++counts[chosen];
    expert_of_copy.push_back(chosen);
  }
  std::vector<Item> copies;
  copies.reserve(expert_of_copy.size());
  for (const size_t i : expert_of_copy) {
    copies.push_back(
        {.id = experts[i].id, .load = experts[i].load / static_cast<double>(counts[i])});
  }
  return copies;
}

// The experts of every node: groups packed by their loads.
std::vector<std::vector<Item>> ExpertsOfNodes(const ExpertLoad& load, int64_t layer,
                                              int64_t num_groups, int64_t num_nodes) {
  const int64_t group_size = load.num_experts / num_groups;
  std::vector<Item> groups(static_cast<size_t>(num_groups));
  for (int64_t group = 0; group < num_groups; ++group) {
    Item& item = groups[static_cast<size_t>(group)];
    item.id = static_cast<int32_t>(group);
    for (int64_t i = 0; i < group_size; ++i) {
      item.load += static_cast<double>(load.at(layer, group * group_size + i));
    }
  }
  std::vector<std::vector<Item>> nodes;
  for (const Bin& bin : Pack(std::move(groups), num_nodes)) {
    std::vector<Item>& experts = nodes.emplace_back();
    for (const Item& group : bin.items) {
      for (int64_t i = 0; i < group_size; ++i) {
        const int64_t expert = group.id * group_size + i;
        experts.push_back({.id = static_cast<int32_t>(expert),
                           .load = static_cast<double>(load.at(layer, expert))});
      }
    }
  }
  return nodes;
}

// Experts stay on their node, which has `ranks_of_node` of the ranks.
absl::Status CheckShape(const ExpertLoad& load, const PlacementShape& shape,
                        int64_t ranks_of_node) {
  if (shape.num_ranks % shape.num_nodes != 0) {
    return InvalidArgument("placing experts: {} ranks, must be a multiple of the {} nodes",
                           shape.num_ranks, shape.num_nodes);
  }
  if (load.num_experts % shape.num_groups != 0) {
    return InvalidArgument("placing experts: {} groups, must divide the {} experts",
                           shape.num_groups, load.num_experts);
  }
  if (shape.num_slots < load.num_experts || shape.num_slots % shape.num_ranks != 0) {
    return InvalidArgument(
        "placing {} experts and copies: must be at least the {} experts and a multiple of the {} "
        "ranks",
        shape.num_slots, load.num_experts, shape.num_ranks);
  }
  if (shape.num_slots > kMaxSlots) {
    return InvalidArgument("placing {} experts and copies: the limit is {}", shape.num_slots,
                           kMaxSlots);
  }
  if (shape.num_slots > load.num_experts * ranks_of_node) {
    return InvalidArgument(
        "placing {} experts and copies: the limit is {}: {} experts on {} ranks{}, none twice on "
        "one",
        shape.num_slots, load.num_experts * ranks_of_node, load.num_experts, ranks_of_node,
        ranks_of_node < shape.num_ranks ? " of their node" : "");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ExpertLayout> PlaceExperts(const ExpertLoad& load, const PlacementShape& shape) {
  if (load.empty()) return InvalidArgument("placing experts: the load has no experts");
  for (const auto& [name, value] : {std::pair{std::string_view("groups"), shape.num_groups},
                                    std::pair{std::string_view("nodes"), shape.num_nodes},
                                    std::pair{std::string_view("ranks"), shape.num_ranks}}) {
    if (value < 1 || value > kMaxSlots) {
      return InvalidArgument("placing experts: {} {}, must be 1..{}", value, name, kMaxSlots);
    }
  }
  const bool by_node = shape.num_groups % shape.num_nodes == 0;
  const int64_t num_nodes = by_node ? shape.num_nodes : 1;
  // With one node groups mean nothing.
  const int64_t num_groups = num_nodes > 1 ? shape.num_groups : 1;
  const int64_t ranks_of_node = shape.num_ranks / num_nodes;
  NIBBLE_RETURN_IF_ERROR(CheckShape(load, shape, ranks_of_node));

  ExpertLayout layout{
      .num_experts = load.num_experts, .num_slots = shape.num_slots, .expert_of_slot = {}};
  layout.expert_of_slot.reserve(static_cast<size_t>(load.num_layers * shape.num_slots));
  for (int64_t layer = 0; layer < load.num_layers; ++layer) {
    for (const auto& experts : ExpertsOfNodes(load, layer, num_groups, num_nodes)) {
      std::vector<Item> copies = Replicate(experts, shape.num_slots / num_nodes, ranks_of_node);
      for (const Bin& rank : Pack(std::move(copies), ranks_of_node)) {
        for (const Item& copy : rank.items) layout.expert_of_slot.push_back(copy.id);
      }
    }
  }
  return layout;
}

std::vector<double> Balancedness(const ExpertLoad& load, const ExpertLayout& layout,
                                 int64_t num_ranks) {
  const int64_t slots_of_rank = layout.num_slots / num_ranks;
  std::vector<double> balancedness(static_cast<size_t>(load.num_layers), 1.0);
  for (int64_t layer = 0; layer < load.num_layers; ++layer) {
    const int32_t* const experts = layout.expert_of_slot.data() + layer * layout.num_slots;
    std::vector<double> counts(static_cast<size_t>(layout.num_experts), 0.0);
    for (int64_t slot = 0; slot < layout.num_slots; ++slot) {
      ++counts[static_cast<size_t>(experts[slot])];
    }
    double sum = 0.0;
    double max = 0.0;
    for (int64_t rank = 0; rank < num_ranks; ++rank) {
      double rank_load = 0.0;
      for (int64_t slot = rank * slots_of_rank; slot < (rank + 1) * slots_of_rank; ++slot) {
        rank_load += static_cast<double>(load.at(layer, experts[slot])) /
                     counts[static_cast<size_t>(experts[slot])];
      }
      sum += rank_load;
      max = std::max(max, rank_load);
    }
    if (max == 0.0) continue;
    balancedness[static_cast<size_t>(layer)] = sum / static_cast<double>(num_ranks) / max;
  }
  return balancedness;
}

}  // namespace nibble::engine
