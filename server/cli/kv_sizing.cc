// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/kv_sizing.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "server/cli/model_setup.h"
#include "server/cli/start_error.h"

namespace nibble::cli {
namespace {

// What decides, computed once.
struct Sizing {
  Sizing(const server::ServeConfig& options, int64_t context, std::span<const KvHost> all)
      : config(options), max_model_len(context), hosts(all) {}

  bool given() const { return config.kv_cache_memory_bytes > 0; }
  int64_t blocks_per_seq() const {
    return (max_model_len + config.block_size - 1) / config.block_size;
  }
  int64_t BudgetOf(const KvHost& host) const {
    if (given()) return config.kv_cache_memory_bytes;
    return host.memory_is_own ? host.available_bytes : host.available_bytes / 4;
  }
  int64_t BlocksOf(const KvHost& host) const { return BudgetOf(host) / host.block_bytes; }
  // That memory has room for, whatever the options ask for.
  int64_t FreeBlocksOf(const KvHost& host) const {
    return std::max<int64_t>(host.available_bytes, 0) / host.block_bytes;
  }

  const server::ServeConfig& config;
  const int64_t max_model_len;
  const std::span<const KvHost> hosts;
};

std::string Where(const KvHost& host) { return host.name.empty() ? "" : " on " + host.name; }

// "--kv-cache-memory-bytes N": so many blocks on every host, of which the largest takes N.
std::string GiveBytes(const Sizing& sizing, int64_t num_blocks, const char* bound) {
  int64_t largest = 0;
  for (const KvHost& host : sizing.hosts) largest = std::max(largest, host.block_bytes);
  return fmt::format("--kv-cache-memory-bytes {} or {}", num_blocks * largest, bound);
}

// The longest context that `num_blocks` hold. None: nothing could be said to anybody.
void SuggestContext(const Sizing& sizing, int64_t num_blocks, StartError* error) {
  const int64_t num_tokens = std::min(num_blocks * sizing.config.block_size, sizing.max_model_len);
  if (num_tokens >= 2) {
    error->remedies.push_back(fmt::format("--max-model-len {} or less", num_tokens));
  }
}

// What a smaller step would leave for the cache: `missing(host)` bytes more on every host.
template <typename Missing>
void SuggestStep(const Sizing& sizing, const Missing& missing, StartError* error) {
  constexpr int64_t kRowPadding = 64;  // workspaces are made for multiples of it
  const server::ServeConfig& config = sizing.config;
  int64_t num_tokens = config.max_num_batched_tokens;
  int64_t num_seqs = config.max_num_seqs;
  const auto lower = [](int64_t present, int64_t bytes, int64_t bytes_each) {
    return bytes_each <= 0 ? 0 : present - (bytes + bytes_each - 1) / bytes_each;
  };
  for (const KvHost& host : sizing.hosts) {
    const int64_t bytes = missing(host);
    if (bytes <= 0) continue;
    num_tokens =
        std::min(num_tokens, lower(config.max_num_batched_tokens, bytes, host.step_token_bytes));
    num_seqs = std::min(num_seqs, lower(config.max_num_seqs, bytes, host.step_seq_bytes));
  }
  num_tokens = num_tokens / kRowPadding * kRowPadding;
  const int64_t least = config.enable_chunked_prefill
                            ? config.max_num_seqs
                            : std::max(config.max_num_seqs, sizing.max_model_len);
  if (num_tokens >= least && num_tokens > 0) {
    error->remedies.push_back(fmt::format("--max-num-batched-tokens {} or less", num_tokens));
  }
  if (num_seqs >= 1) {
    error->remedies.push_back(fmt::format("--max-num-seqs {} or less", num_seqs));
  }
}

// "--gpu-memory-utilization U or more", where one is enough for all.
void SuggestUtilization(const Sizing& sizing, StartError* error) {
  double enough = 0.0;
  for (const KvHost& host : sizing.hosts) {
    const int64_t missing = sizing.blocks_per_seq() * host.block_bytes - host.available_bytes;
    if (missing <= 0) continue;
    const double here =
        EnoughUtilization(sizing.config.model.gpu_memory_utilization, missing, host.total_bytes);
    if (here == 0.0) return;
    enough = std::max(enough, here);
  }
  error->remedies.push_back(fmt::format("--gpu-memory-utilization {:.2f} or more", enough));
}

// One sequence does not fit on `host`.
absl::Status TooSmall(const Sizing& sizing, const KvHost& host) {
  int64_t fewest = std::numeric_limits<int64_t>::max();
  int64_t fewest_free = fewest;
  int64_t missing_bytes = 0;  // of the host with the least room
  for (const KvHost& each : sizing.hosts) {
    fewest = std::min(fewest, sizing.BlocksOf(each));
    fewest_free = std::min(fewest_free, sizing.FreeBlocksOf(each));
    missing_bytes =
        std::max(missing_bytes, sizing.blocks_per_seq() * each.block_bytes - each.available_bytes);
  }
  const int64_t needed_bytes = sizing.blocks_per_seq() * host.block_bytes;
  const int64_t budget = sizing.BudgetOf(host);
  StartError error{
      .what = fmt::format("the KV cache does not fit{}", Where(host)),
      .needed = fmt::format("{} for one sequence of --max-model-len {}: {} blocks of {} tokens, {} "
                            "each",
                            HumanBytes(needed_bytes), sizing.max_model_len, sizing.blocks_per_seq(),
                            sizing.config.block_size, HumanBytes(host.block_bytes))};
  if (sizing.given()) {
    error.there_is = fmt::format("{}, as --kv-cache-memory-bytes {} says", HumanBytes(budget),
                                 sizing.config.kv_cache_memory_bytes);
  } else if (host.memory_is_own) {
    error.there_is = fmt::format("{}: what --gpu-memory-utilization {} leaves beside the weights",
                                 HumanBytes(std::max<int64_t>(budget, 0)),
                                 sizing.config.model.gpu_memory_utilization);
  } else {
    error.there_is = fmt::format("{}: a quarter of the {} that are available", HumanBytes(budget),
                                 HumanBytes(host.available_bytes));
  }
  SuggestContext(sizing, fewest, &error);
  if (!sizing.given()) {
    SuggestStep(
        sizing,
        [&](const KvHost& each) {
          const int64_t needed = sizing.blocks_per_seq() * each.block_bytes;
          return (each.memory_is_own ? needed : 4 * needed) - each.available_bytes;
        },
        &error);
  }
  if (fewest_free >= sizing.blocks_per_seq()) {
    // A device's memory is all its rank's already.
    const bool helps = sizing.given() || !host.memory_is_own;
    if (helps) error.remedies.push_back(GiveBytes(sizing, sizing.blocks_per_seq(), "more"));
  } else if (host.memory_is_own) {
    SuggestUtilization(sizing, &error);
    error.remedies.push_back("more devices: --tensor-parallel-size, --pipeline-parallel-size");
  } else {
    error.remedies.push_back(
        fmt::format("a machine, or a memory limit of the container, with {} "
                    "more",
                    HumanBytes(missing_bytes)));
  }
  return error.ToStatus(absl::StatusCode::kResourceExhausted);
}

// The given bytes are not there on `host`.
absl::Status NotThere(const Sizing& sizing, const KvHost& host, int64_t num_blocks) {
  StartError error{.what = fmt::format("the KV cache does not fit{}", Where(host)),
                   .needed = fmt::format("{}, as --kv-cache-memory-bytes {} says",
                                         HumanBytes(num_blocks * host.block_bytes),
                                         sizing.config.kv_cache_memory_bytes),
                   .there_is = fmt::format("{} available", HumanBytes(host.available_bytes))};
  SuggestStep(
      sizing,
      [&](const KvHost& each) { return num_blocks * each.block_bytes - each.available_bytes; },
      &error);
  int64_t fewest_free = num_blocks;
  for (const KvHost& each : sizing.hosts) {
    fewest_free = std::min(fewest_free, sizing.FreeBlocksOf(each));
  }
  if (fewest_free >= sizing.blocks_per_seq()) {
    error.remedies.push_back(GiveBytes(sizing, fewest_free, "less"));
  } else if (fewest_free >= 1) {
    const std::string bytes = GiveBytes(sizing, fewest_free, "less");
    error.remedies.push_back(fmt::format("--max-model-len {} or less with {}",
                                         fewest_free * sizing.config.block_size, bytes));
  }
  return error.ToStatus(absl::StatusCode::kResourceExhausted);
}

}  // namespace

absl::StatusOr<KvSize> SizeKvCache(const server::ServeConfig& config, int64_t max_model_len,
                                   std::span<const KvHost> hosts) {
  const Sizing sizing(config, max_model_len, hosts);
  const bool all_own = std::all_of(hosts.begin(), hosts.end(),
                                   [](const KvHost& host) { return host.memory_is_own; });
  // A slot is an int32.
  const int64_t most_blocks = std::numeric_limits<int32_t>::max() / config.block_size;
  KvSize size{.num_blocks = sizing.given() ? std::numeric_limits<int64_t>::max()
                            : all_own      ? most_blocks
                                           : sizing.blocks_per_seq() * config.max_num_seqs};
  int64_t bytes_of_block = 0;
  for (const KvHost& host : hosts) {
    if (host.block_bytes <= 0) {
      return InvalidArgument("{}{}a KV block has {} bytes, want more than 0", host.name,
                             host.name.empty() ? "" : ": ", host.block_bytes);
    }
  }
  for (const KvHost& host : hosts) {
    const int64_t num_blocks = sizing.BlocksOf(host);
    if (num_blocks < sizing.blocks_per_seq()) return TooSmall(sizing, host);
    size.num_blocks = std::min(size.num_blocks, num_blocks);
    bytes_of_block += host.block_bytes;
  }
  for (const KvHost& host : hosts) {
    if (!sizing.given() || size.num_blocks <= sizing.FreeBlocksOf(host)) continue;
    return NotThere(sizing, host, size.num_blocks);
  }
  size.bytes = size.num_blocks * bytes_of_block;
  return size;
}

}  // namespace nibble::cli
