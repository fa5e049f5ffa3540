// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/kv_sizing.h"

#include <algorithm>
#include <limits>

#include "server/cli/model_setup.h"

namespace nibble::cli {

absl::StatusOr<KvSize> SizeKvCache(const server::ServeConfig& config, int64_t max_model_len,
                                   std::span<const KvHost> hosts) {
  const int64_t blocks_per_seq = (max_model_len + config.block_size - 1) / config.block_size;
  const bool given = config.kv_cache_memory_bytes > 0;
  const bool all_own = std::all_of(hosts.begin(), hosts.end(),
                                   [](const KvHost& host) { return host.memory_is_own; });
  const char* remedy = given     ? "a larger --kv-cache-memory-bytes"
                       : all_own ? "a larger --gpu-memory-utilization, or devices with more memory"
                                 : "a machine with more free memory";
  // A slot is an int32.
  const int64_t most_blocks = std::numeric_limits<int32_t>::max() / config.block_size;
  KvSize size{.num_blocks = given     ? std::numeric_limits<int64_t>::max()
                            : all_own ? most_blocks
                                      : blocks_per_seq * config.max_num_seqs};
  int64_t bytes_of_block = 0;
  for (const KvHost& host : hosts) {
    const std::string where = host.name.empty() ? "" : host.name + ": ";
    if (host.block_bytes <= 0) {
      return InvalidArgument("{}a KV block has {} bytes, want more than 0", where,
                             host.block_bytes);
    }
    const int64_t free_share = host.memory_is_own ? host.available_bytes : host.available_bytes / 4;
    const int64_t budget = given ? config.kv_cache_memory_bytes : free_share;
    const int64_t num_blocks = budget / host.block_bytes;
    if (num_blocks < 1) {
      return ResourceExhausted(
          "{}a KV cache of {} does not hold one block of {} tokens, which needs {}: use {}", where,
          HumanBytes(budget), config.block_size, HumanBytes(host.block_bytes), remedy);
    }
    if (num_blocks < blocks_per_seq) {
      return ResourceExhausted(
          "{}a KV cache of {} holds {} tokens, one sequence of --max-model-len {} needs {}: use "
          "--max-model-len {} or less, or {}",
          where, HumanBytes(budget), num_blocks * config.block_size, max_model_len,
          HumanBytes(blocks_per_seq * host.block_bytes), num_blocks * config.block_size, remedy);
    }
    size.num_blocks = std::min(size.num_blocks, num_blocks);
    bytes_of_block += host.block_bytes;
  }
  for (const KvHost& host : hosts) {
    if (!given || size.num_blocks <= host.available_bytes / host.block_bytes) continue;
    return ResourceExhausted("{}{}--kv-cache-memory-bytes asks for {}, {} are available: use less",
                             host.name, host.name.empty() ? "" : ": ",
                             HumanBytes(size.num_blocks * host.block_bytes),
                             HumanBytes(host.available_bytes));
  }
  size.bytes = size.num_blocks * bytes_of_block;
  return size;
}

}  // namespace nibble::cli
