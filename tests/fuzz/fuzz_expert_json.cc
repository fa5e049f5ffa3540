// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Any bytes as a layout or a load of experts: an error, or something that is written and read back
// as it is, and that placement works with.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "engine/moe/placement.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble::engine;  // NOLINT(google-build-using-namespace)
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto layout = ParseExpertLayout(text, "input");
  if (layout.ok()) {
    const auto again = ParseExpertLayout(Serialize(*layout), "again");
    if (!again.ok() || again->expert_of_slot != layout->expert_of_slot) std::abort();
    const SlotTable slots(*layout, layout->num_layers() - 1);
    for (int32_t expert = 0; expert < layout->num_experts; ++expert) {
      if (slots.SlotOf(expert, 12345) >= layout->num_slots) std::abort();
    }
  }
  const auto load = ParseExpertLoad(text, "input");
  if (load.ok()) {
    const auto again = ParseExpertLoad(Serialize(*load), "again");
    if (!again.ok() || again->tokens != load->tokens) std::abort();
    if (load->num_layers > 8 || load->num_experts > 64) return 0;  // keeps inputs quick
    const auto placed = PlaceExperts(*load, {.num_slots = 2 * load->num_experts, .num_ranks = 2});
    if (!placed.ok()) std::abort();
    if (!CheckExpertLayout(*placed, load->num_layers, load->num_experts, 2).ok()) std::abort();
    for (const double value : Balancedness(*load, *placed, 2)) {
      if (!(value > 0.0)) std::abort();
    }
  }
  return 0;
}
