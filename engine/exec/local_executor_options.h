// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The sizes that a rank takes memory for.
#pragma once

#include <cstdint>

namespace nibble::engine {

struct LocalExecutorOptions {
  int64_t block_size = 16;
  int64_t num_blocks = 0;     // KV blocks; > 0
  int64_t max_model_len = 0;  // 0: the model's max_position_embeddings
  // The largest step, as the scheduler's; plans beyond it are refused.
  int64_t max_num_batched_tokens = 2048;
  int64_t max_num_seqs = 64;  // sequences, and tokens sampled

  friend bool operator==(const LocalExecutorOptions&, const LocalExecutorOptions&) = default;
};

}  // namespace nibble::engine
