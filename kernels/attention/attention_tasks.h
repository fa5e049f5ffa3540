// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// How one call of paged attention is cut into work, and what its pieces are merged in.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/attention/attention_tile.h"
#include "kernels/attention/paged_attention.h"

namespace nibble::kernels {

// A task packs each tile once for at most this many rows (query heads of tokens): enough to make
// packing a small part of the work, few enough for the rows' state to stay in the L2 cache.
inline constexpr int64_t kTaskRows = 96;

// Tiles are merged into segments of this many positions, cut at absolute multiples, and segments
// into the result in ascending order. Always, so that whether threads share one sequence's segments
// shows in no bit.
inline constexpr int64_t kSegmentKeys = 512;
static_assert(kSegmentKeys % kTileKeys == 0);

// Tokens [token_begin, token_end) of one sequence, counted from its first new one, and KV heads
// [head_begin, head_end).
struct AttentionTask {
  int64_t seq = 0;
  int64_t token_begin = 0;
  int64_t token_end = 0;
  int64_t head_begin = 0;
  int64_t head_end = 0;
  // Positions that any of its rows sees.
  int64_t key_begin = 0;
  int64_t key_end = 0;

  int64_t first_segment() const { return key_begin / kSegmentKeys; }
  int64_t end_segment() const { return (key_end + kSegmentKeys - 1) / kSegmentKeys; }
  int64_t num_segments() const { return end_segment() - first_segment(); }
  int64_t num_heads() const { return head_end - head_begin; }
};

// The first position that a token at `position` sees.
int64_t FirstVisible(const PagedAttentionArgs& args, int64_t position);
// Position of a sequence's new token.
int64_t TokenPosition(const PagedAttentionArgs& args, int64_t seq, int64_t token);

// All tasks of a call, in place of what `tasks` had; `group` query heads share a KV head. Tasks of
// few rows take several heads, as long as there is work for `num_threads`: a block's heads lie side
// by side, and memory gives more of its bandwidth to long stretches.
void MakeAttentionTasks(const PagedAttentionArgs& args, int64_t num_kv_heads, int64_t group,
                        int num_threads, std::vector<AttentionTask>* tasks);

// Floats that a state of `num_rows` rows takes, and the state in such memory.
int64_t StateFloats(int64_t num_rows, int64_t padded_dim);
AttentionState StateIn(float* memory, int64_t num_rows);
void ClearState(const AttentionState& state, int64_t num_rows, int64_t padded_dim);

// total += part, both relative to the larger maximum. A row whose part is empty (every key of the
// segment masked) stays as it is; the first part is taken over to the bit.
void MergeState(const AttentionState& part, int64_t num_rows, int64_t padded_dim,
                const AttentionState& total);

}  // namespace nibble::kernels
