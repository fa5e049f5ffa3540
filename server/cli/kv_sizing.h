// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// How many KV blocks a model gets.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/status.h"
#include "server/config.h"

namespace nibble::cli {

// A host and what the ranks on it need together, or a rank with a device.
struct KvHost {
  std::string name;  // "node 1", "rank 3"; empty: there is only one
  int64_t block_bytes = 0;
  int64_t available_bytes = 0;
  bool memory_is_own = false;  // engine::KvMemory::is_own
  int64_t total_bytes = 0;     // engine::KvMemory's
  // What a token, a sequence of the largest step takes there: it would be the cache's.
  int64_t step_token_bytes = 0;
  int64_t step_seq_bytes = 0;
};

struct KvSize {
  int64_t num_blocks = 0;
  int64_t bytes = 0;  // on all hosts
};

// As many blocks as max_num_seqs full sequences need, within the given bytes or a quarter of the
// free memory of every host: all ranks have the same number. Where all have memory of their own, as
// many as fit there: what nobody else takes keeps beginnings of prompts. Given bytes must be free.
// At least one full sequence must fit: a request may need it. REQUIRES hosts and max_model_len > 0.
absl::StatusOr<KvSize> SizeKvCache(const server::ServeConfig& config, int64_t max_model_len,
                                   std::span<const KvHost> hosts);

}  // namespace nibble::cli
