// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// From "token t goes to these experts" to "expert slot s has these rows": a stable counting sort.
// Slots are the experts that are stored, copies of one expert included; a rank has slots
// [first_slot, first_slot + num_slots) of them, and the rows of others' are left out.
//
//   rows of slot s of this rank:  offsets[s] .. offsets[s + 1] - 1, by token
//   row i is of token token_of_row[i]
//   the row of token t for its j-th expert is row_of[t * k + j], or -1: not this rank's
//
// offsets and what follows stay where the kernels read them: no size comes back to the caller, who
// launches for num_tokens * k rows at most.
#pragma once

#include <cstdint>

namespace nibble::kernels {

struct PermuteArgs {
  int64_t num_tokens = 0;
  int64_t num_experts_per_tok = 0;    // k
  const int32_t* slot_ids = nullptr;  // [num_tokens, k]
  int32_t first_slot = 0;             // this rank's
  int32_t num_slots = 0;              // >= 0
  int32_t* offsets = nullptr;         // [num_slots + 1]
  int32_t* token_of_row = nullptr;    // [num_tokens * k], the first offsets[num_slots] are written
  int32_t* row_of = nullptr;          // [num_tokens, k]
};

// REQUIRES num_tokens * k < 2^31.
void Permute(const PermuteArgs& args);

}  // namespace nibble::kernels
