// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/attention/attention_tasks.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"

namespace nibble::kernels {
namespace {

constexpr float kEmpty = -std::numeric_limits<float>::infinity();

// Maxima and sums, before the accumulators.
int64_t HeadFloats(int64_t num_rows) {
  return (2 * num_rows + kPadColumns - 1) / kPadColumns * kPadColumns;
}

int64_t NumNew(const PagedAttentionArgs& args, int64_t seq) {
  return args.query_start[seq + 1] - args.query_start[seq];
}

}  // namespace

int64_t FirstVisible(const PagedAttentionArgs& args, int64_t position) {
  return args.sliding_window > 0 ? std::max<int64_t>(0, position - args.sliding_window + 1) : 0;
}

int64_t TokenPosition(const PagedAttentionArgs& args, int64_t seq, int64_t token) {
  return args.context_lens[seq] - NumNew(args, seq) + token;
}

void MakeAttentionTasks(const PagedAttentionArgs& args, int64_t num_kv_heads, int64_t group,
                        int num_threads, std::vector<AttentionTask>* tasks) {
  tasks->clear();
  const int64_t max_tokens = std::max<int64_t>(1, kTaskRows / group);
  // Segments of all sequences at least, were each one task.
  int64_t num_segments = 0;
  for (int64_t seq = 0; seq < args.num_seqs; ++seq) {
    NIBBLE_CHECK_LE(NumNew(args, seq), args.context_lens[seq]);
    const int64_t first = FirstVisible(args, TokenPosition(args, seq, 0));
    num_segments += (args.context_lens[seq] - first + kSegmentKeys - 1) / kSegmentKeys;
  }
  int64_t max_heads = num_kv_heads;
  while (max_heads > 1 && num_segments * (num_kv_heads / max_heads) < 4 * num_threads) {
    max_heads = (max_heads + 1) / 2;
  }
  for (int64_t seq = 0; seq < args.num_seqs; ++seq) {
    const int64_t num_new = NumNew(args, seq);
    const int64_t rows = std::max<int64_t>(1, std::min(num_new, max_tokens) * group);
    const int64_t num_heads = std::clamp<int64_t>(kTaskRows / rows, 1, max_heads);
    for (int64_t begin = 0; begin < num_new; begin += max_tokens) {
      const int64_t end = std::min(num_new, begin + max_tokens);
      for (int64_t head = 0; head < num_kv_heads; head += num_heads) {
        tasks->push_back({.seq = seq,
                          .token_begin = begin,
                          .token_end = end,
                          .head_begin = head,
                          .head_end = std::min(num_kv_heads, head + num_heads),
                          .key_begin = FirstVisible(args, TokenPosition(args, seq, begin)),
                          .key_end = TokenPosition(args, seq, end - 1) + 1});
      }
    }
  }
}

int64_t StateFloats(int64_t num_rows, int64_t padded_dim) {
  return HeadFloats(num_rows) + num_rows * padded_dim;
}

AttentionState StateIn(float* memory, int64_t num_rows) {
  return {.max = memory, .sum = memory + num_rows, .acc = memory + HeadFloats(num_rows)};
}

void ClearState(const AttentionState& state, int64_t num_rows, int64_t padded_dim) {
  std::fill_n(state.max, num_rows, kEmpty);
  std::fill_n(state.sum, num_rows, 0.0F);
  std::fill_n(state.acc, num_rows * padded_dim, 0.0F);
}

void MergeState(const AttentionState& part, int64_t num_rows, int64_t padded_dim,
                const AttentionState& total) {
  for (int64_t row = 0; row < num_rows; ++row) {
    if (part.max[row] == kEmpty && part.sum[row] == 0.0F) continue;
    const bool first = total.max[row] == kEmpty && total.sum[row] == 0.0F;
    const float max = std::max(total.max[row], part.max[row]);
    const float keep = first ? 0.0F : std::exp(total.max[row] - max);
    const float add = first ? 1.0F : std::exp(part.max[row] - max);
    total.max[row] = max;
    total.sum[row] = total.sum[row] * keep + part.sum[row] * add;
    float* into = total.acc + row * padded_dim;
    const float* from = part.acc + row * padded_dim;
    for (int64_t d = 0; d < padded_dim; ++d) into[d] = into[d] * keep + from[d] * add;
  }
}

}  // namespace nibble::kernels
