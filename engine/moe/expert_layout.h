// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Which expert is stored where. A layer's experts are stored in slots; expert rank r of N
// (RankPlace::expert_rank) has slots [r * num_slots / N, (r + 1) * num_slots / N). With as many
// slots as experts, slot e holds expert e; with more (replicas of experts that many tokens choose),
// placement.h decides. All ranks know the whole layout and choose a token's copy by the same rule.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace nibble::engine {

inline constexpr int64_t kMaxSlots = 4096;         // of a layer
inline constexpr int64_t kMaxLayoutLayers = 1024;  // of a model

struct ExpertLayout {
  int64_t num_experts = 0;
  int64_t num_slots = 0;  // >= num_experts
  // [num_layers, num_slots] for the layers of the whole model: the expert in each slot. Every
  // expert is in at least one slot of every layer; of a dense layer nobody looks.
  std::vector<int32_t> expert_of_slot;

  int64_t num_layers() const { return static_cast<int64_t>(expert_of_slot.size()) / num_slots; }
  static ExpertLayout Uniform(int64_t num_layers, int64_t num_experts);
};

// INVALID_ARGUMENT, naming layer, slot and limit, for a layout that breaks what is said above, is
// not of such a model, or whose slots do not divide among `expert_size` expert ranks.
absl::Status CheckExpertLayout(const ExpertLayout& layout, int64_t num_layers, int64_t num_experts,
                               int64_t expert_size);

// The slots of each expert of one layer, and the rule which of them a token goes to.
class SlotTable {
 public:
  // REQUIRES a checked layout.
  SlotTable(const ExpertLayout& layout, int64_t layer);

  // Depends on expert and position in the sequence alone: the same on every rank, in every batch.
  int32_t SlotOf(int32_t expert, int32_t position) const {
    const auto e = static_cast<size_t>(expert);
    const int32_t count = first_[e + 1] - first_[e];
    if (count == 1) return slots_[static_cast<size_t>(first_[e])];
    return slots_[static_cast<size_t>(first_[e] + position % count)];
  }

 private:
  std::vector<int32_t> first_;  // [num_experts + 1]: where an expert's slots begin in slots_
  std::vector<int32_t> slots_;  // [num_slots], by expert
};

// As JSON text, for files:
//   {"num_experts": 2, "num_slots": 4, "expert_of_slot": [[0, 1, 1, 0], ...]}
// Parse checks all that can be checked without the model: INVALID_ARGUMENT naming `where` (a file,
// a flag), field, value and limit. Other fields are not looked at.
std::string Serialize(const ExpertLayout& layout);
absl::StatusOr<ExpertLayout> ParseExpertLayout(std::string_view json, std::string_view where);

}  // namespace nibble::engine
