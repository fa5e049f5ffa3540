// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/moe/permute.h"

#include <algorithm>

namespace nibble::kernels {

void Permute(const PermuteArgs& args) {
  const int64_t num_ids = args.num_tokens * args.num_experts_per_tok;
  const auto is_own = [&args](int32_t slot) { return slot >= 0 && slot < args.num_slots; };
  std::fill_n(args.offsets, args.num_slots + 1, 0);
  for (int64_t i = 0; i < num_ids; ++i) {
    const int32_t slot = args.slot_ids[i] - args.first_slot;
    if (is_own(slot)) ++args.offsets[slot + 1];
  }
  for (int32_t s = 0; s < args.num_slots; ++s) args.offsets[s + 1] += args.offsets[s];
  // offsets[s] serves as the next free row of slot s, and is put back afterwards.
  for (int64_t i = 0; i < num_ids; ++i) {
    const int32_t slot = args.slot_ids[i] - args.first_slot;
    args.row_of[i] = -1;
    if (!is_own(slot)) continue;
    const int32_t row = args.offsets[slot]++;
    args.row_of[i] = row;
    args.token_of_row[row] = static_cast<int32_t>(i / args.num_experts_per_tok);
  }
  for (int32_t s = args.num_slots; s > 0; --s) args.offsets[s] = args.offsets[s - 1];
  args.offsets[0] = 0;
}

}  // namespace nibble::kernels
