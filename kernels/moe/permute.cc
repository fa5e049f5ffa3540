// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/moe/permute.h"

#include <algorithm>
#include <cstring>

namespace nibble::kernels {

void Permute(const PermuteArgs& args) {
  const auto num_slots = static_cast<uint32_t>(args.num_slots);
  const int64_t k = args.num_experts_per_tok;
  // Below num_slots for this rank's alone: others' wrap around.
  const auto own_slot = [&args](int64_t i) {
    return static_cast<uint32_t>(args.slot_ids[i]) - static_cast<uint32_t>(args.first_slot);
  };
  int32_t* const offsets = args.offsets;
  std::fill_n(offsets, num_slots + 1, 0);
  for (int64_t i = 0; i < args.num_tokens * k; ++i) {
    const uint32_t slot = own_slot(i);
    if (slot < num_slots) ++offsets[slot];
  }
  int32_t rows = 0;
  for (uint32_t s = 0; s <= num_slots; ++s) {
    const int32_t count = offsets[s];
    offsets[s] = rows;
    rows += count;
  }
  // offsets[s] serves as the next free row of slot s, and ends as offsets[s + 1] is to be.
  for (int64_t token = 0; token < args.num_tokens; ++token) {
    for (int64_t i = token * k; i < (token + 1) * k; ++i) {
      const uint32_t slot = own_slot(i);
      if (slot < num_slots) {
        const int32_t row = offsets[slot]++;
        args.row_of[i] = row;
        args.token_of_row[row] = static_cast<int32_t>(token);
      } else {
        args.row_of[i] = -1;
      }
    }
  }
  std::memmove(offsets + 1, offsets, num_slots * sizeof(int32_t));
  offsets[0] = 0;
}

}  // namespace nibble::kernels
