// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/moe/expert_layout.h"

#include <numeric>

namespace nibble::engine {

ExpertLayout ExpertLayout::Uniform(int64_t num_layers, int64_t num_experts) {
  ExpertLayout layout{.num_experts = num_experts, .num_slots = num_experts, .expert_of_slot = {}};
  layout.expert_of_slot.resize(static_cast<size_t>(num_layers * num_experts));
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    const auto first = layout.expert_of_slot.begin() + layer * num_experts;
    std::iota(first, first + num_experts, 0);
  }
  return layout;
}

absl::Status CheckExpertLayout(const ExpertLayout& layout, int64_t num_layers, int64_t num_experts,
                               int64_t expert_size) {
  if (layout.num_experts != num_experts) {
    return InvalidArgument("the expert layout is of {} experts, the model has {}",
                           layout.num_experts, num_experts);
  }
  if (layout.num_slots < num_experts || layout.num_slots % expert_size != 0) {
    return InvalidArgument(
        "the expert layout has {} slots, wanted are {} or more in multiples of {}",
        layout.num_slots, num_experts, expert_size);
  }
  if (static_cast<int64_t>(layout.expert_of_slot.size()) != num_layers * layout.num_slots) {
    return InvalidArgument("the expert layout has {} entries, {} layers of {} slots have {}",
                           layout.expert_of_slot.size(), num_layers, layout.num_slots,
                           num_layers * layout.num_slots);
  }
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    std::vector<bool> is_stored(static_cast<size_t>(num_experts), false);
    for (int64_t slot = 0; slot < layout.num_slots; ++slot) {
      const int32_t expert =
          layout.expert_of_slot[static_cast<size_t>(layer * layout.num_slots + slot)];
      if (expert < 0 || expert >= num_experts) {
        return InvalidArgument(
            "the expert layout has expert {} in slot {} of layer {}, the limits "
            "are 0 and {}",
            expert, slot, layer, num_experts - 1);
      }
      is_stored[static_cast<size_t>(expert)] = true;
    }
    for (int64_t expert = 0; expert < num_experts; ++expert) {
      if (!is_stored[static_cast<size_t>(expert)]) {
        return InvalidArgument("the expert layout has no slot for expert {} of layer {}", expert,
                               layer);
      }
    }
  }
  return absl::OkStatus();
}

SlotTable::SlotTable(const ExpertLayout& layout, int64_t layer)
    : first_(static_cast<size_t>(layout.num_experts) + 1),
      slots_(static_cast<size_t>(layout.num_slots)) {
  const int32_t* const experts = layout.expert_of_slot.data() + layer * layout.num_slots;
  for (int64_t slot = 0; slot < layout.num_slots; ++slot) {
    ++first_[static_cast<size_t>(experts[slot]) + 1];
  }
  std::partial_sum(first_.begin(), first_.end(), first_.begin());
  std::vector<int32_t> next(first_.begin(), first_.end() - 1);
  for (int64_t slot = 0; slot < layout.num_slots; ++slot) {
    slots_[static_cast<size_t>(next[static_cast<size_t>(experts[slot])]++)] =
        static_cast<int32_t>(slot);
  }
}

}  // namespace nibble::engine
