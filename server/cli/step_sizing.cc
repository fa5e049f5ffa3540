// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/step_sizing.h"

#include <algorithm>
#include <string>
#include <utility>

#include "server/cli/model_setup.h"
#include "server/cli/start_error.h"

namespace nibble::cli {
namespace {

// Workspaces are made for multiples of it.
constexpr int64_t kRowPadding = 64;
// What is available changes while others work, and of a device not everything is known before: the
// remedies leave a sixteenth of it.
constexpr int64_t kMargin = 16;

// The largest value in low..high that `fits`, which holds for all below one that it holds for; 0:
// none.
template <typename Fits>
int64_t Largest(int64_t low, int64_t high, const Fits& fits) {
  if (low > high || !fits(low)) return 0;
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    fits(middle) ? low = middle : high = middle - 1;
  }
  return low;
}

struct Sizing {
  const StepBytes& bytes;
  const engine::StepLimits& limits;
  int64_t room = 0;  // for a step of one rank

  bool Fits(int64_t num_tokens, int64_t num_seqs) const {
    engine::StepLimits smaller = limits;
    smaller.max_tokens = num_tokens;
    smaller.max_samples = smaller.max_seqs = num_seqs;
    return bytes(smaller) <= room;
  }
  // The largest step of so many sequences; 0: none fits.
  int64_t TokensWith(int64_t num_seqs, int64_t least) const {
    const int64_t found = Largest(std::max(num_seqs, least), limits.max_tokens,
                                  [&](int64_t num_tokens) { return Fits(num_tokens, num_seqs); });
    const int64_t padded = found / kRowPadding * kRowPadding;
    return padded >= std::max(num_seqs, least) ? padded : found;
  }
};

// Of --max-num-batched-tokens and --max-num-seqs: one of them, or both when neither is enough.
void SuggestStep(const Sizing& sizing, int64_t least_tokens, StartError* error) {
  const engine::StepLimits& limits = sizing.limits;
  const int64_t num_tokens = sizing.TokensWith(limits.max_seqs, least_tokens);
  const int64_t num_seqs = Largest(1, limits.max_seqs, [&](int64_t candidate) {
    return sizing.Fits(limits.max_tokens, candidate);
  });
  if (num_tokens > 0) {
    error->remedies.push_back(fmt::format("--max-num-batched-tokens {} or less", num_tokens));
  }
  if (num_seqs > 0) error->remedies.push_back(fmt::format("--max-num-seqs {} or less", num_seqs));
  if (num_tokens > 0 || num_seqs > 0) return;
  for (int64_t fewer = limits.max_seqs / 2; fewer > 0; fewer /= 2) {
    const int64_t with = sizing.TokensWith(fewer, least_tokens);
    if (with == 0) continue;
    error->remedies.push_back(fmt::format(
        "--max-num-seqs {} or less with --max-num-batched-tokens {} or less", fewer, with));
    return;
  }
}

}  // namespace

StepNeighbors NeighborsOf(const server::ServeConfig& config, int64_t max_model_len, int num_ranks) {
  return {.num_ranks = num_ranks,
          .kv_cache_memory_bytes = config.kv_cache_memory_bytes,
          .min_batched_tokens = config.enable_chunked_prefill ? 1 : max_model_len,
          .gpu_memory_utilization = config.model.gpu_memory_utilization};
}

absl::Status StepDoesNotFit(const StepBytes& bytes, const engine::StepLimits& limits,
                            const engine::KvMemory& memory, int64_t kv_seq_bytes,
                            const StepNeighbors& neighbors) {
  const int64_t needed = bytes(limits);
  const int64_t available = std::max<int64_t>(memory.available_bytes, 0);
  const int num_ranks = memory.is_own ? 1 : std::max(neighbors.num_ranks, 1);
  // As SizeKvCache has it: given bytes, all that is left of a device, a quarter of what is left.
  int64_t cache = memory.is_own ? kv_seq_bytes : 4 * kv_seq_bytes;
  if (neighbors.kv_cache_memory_bytes > 0) cache = neighbors.kv_cache_memory_bytes / num_ranks;
  StartError error{
      .what = "the memory of the largest step does not fit",
      .needed = fmt::format("{} for --max-num-batched-tokens {} and --max-num-seqs {}{}, and {} "
                            "beside it for the KV cache",
                            HumanBytes(needed), limits.max_tokens, limits.max_seqs,
                            num_ranks == 1 ? "" : fmt::format(", of each of {} ranks", num_ranks),
                            HumanBytes(cache))};
  if (memory.is_own) {
    error.there_is = fmt::format("{}: what --gpu-memory-utilization {} leaves beside the weights",
                                 HumanBytes(available), neighbors.gpu_memory_utilization);
  } else {
    error.there_is = fmt::format("{} available", HumanBytes(available));
  }
  const int64_t room = available - available / kMargin;
  SuggestStep({.bytes = bytes, .limits = limits, .room = room / num_ranks - cache},
              neighbors.min_batched_tokens, &error);
  const int64_t missing =
      (needed + cache) * num_ranks * kMargin / (kMargin - 1) - memory.available_bytes;
  if (memory.is_own) {
    const double enough =
        EnoughUtilization(neighbors.gpu_memory_utilization, missing, memory.total_bytes);
    if (enough > 0.0) {
      error.remedies.push_back(fmt::format("--gpu-memory-utilization {:.2f} or more", enough));
    }
  } else {
    error.remedies.push_back(fmt::format(
        "a machine, or a memory limit of the container, with {} more", HumanBytes(missing)));
  }
  return error.ToStatus(absl::StatusCode::kResourceExhausted);
}

absl::Status ReserveStep(engine::Model* model, const engine::StepLimits& limits,
                         const StepNeighbors& neighbors, ThreadPool* pool) {
  const engine::KvMemory before = model->kv_memory();
  const absl::Status reserved = model->Reserve(limits, pool);
  if (!absl::IsResourceExhausted(reserved)) return reserved;
  const int64_t block_bytes =
      engine::KvCache::BlockBytes(model->rank_config(), limits.block_size, model->kv_dtype());
  const int64_t num_blocks = (limits.max_positions + limits.block_size - 1) / limits.block_size;
  return StepDoesNotFit(
      [model](const engine::StepLimits& smaller) { return model->StepBytes(smaller); }, limits,
      before, num_blocks * block_bytes, neighbors);
}

}  // namespace nibble::cli
