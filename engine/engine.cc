// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/engine.h"

#include <algorithm>
#include <limits>
#include <string>

#include "base/log.h"
#include "engine/engine_loop.h"
#include "engine/request/violations.h"

namespace nibble::engine {
namespace {

constexpr int64_t kMaxSeqs = 4096;
constexpr int64_t kMaxBatchedTokens = int64_t{1} << 20;
constexpr int64_t kMaxQueuedRequests = int64_t{1} << 20;
constexpr int64_t kMaxStepsInFlight = 1024;
constexpr int64_t kMaxGroupTimeoutNs = int64_t{365} * 24 * 3600 * 1'000'000'000;

absl::Status CheckExecutor(const Executor& executor, const EngineConfig& config) {
  const ExecutorLimits limits = executor.limits();
  constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
  Violations violations;
  violations.CheckRange<int64_t>("num_blocks of the executor", limits.num_blocks, 1, kMaxInt32);
  violations.CheckRange<int64_t>("block_size of the executor", limits.block_size, 1, 1 << 16);
  violations.CheckRange<int64_t>("vocab_size of the executor", limits.vocab_size, 1, kMaxInt32);
  violations.CheckRange<int64_t>("max_model_len of the executor", limits.max_model_len, 2,
                                 kMaxInt32);
  violations.CheckRange<int64_t>("max_steps_in_flight of the executor",
                                 executor.max_steps_in_flight(), 1, kMaxStepsInFlight);
  NIBBLE_RETURN_IF_ERROR(violations.ToStatus());
  // Slots are int32 in a StepPlan.
  violations.CheckRange<int64_t>("the KV cache's size in tokens",
                                 limits.num_blocks * limits.block_size, 2, kMaxInt32);
  for (const int32_t id : config.eos_token_ids) {
    violations.CheckRange<int64_t>("an eos_token_id", id, 0, limits.vocab_size - 1);
  }
  return violations.ToStatus();
}

}  // namespace

absl::Status EngineConfig::Validate() const {
  Violations violations;
  violations.CheckRange<int64_t>("max_num_seqs", max_num_seqs, 1, kMaxSeqs);
  violations.CheckRange<int64_t>("max_num_batched_tokens", max_num_batched_tokens,
                                 std::clamp<int64_t>(max_num_seqs, 1, kMaxSeqs), kMaxBatchedTokens);
  violations.CheckRange<int64_t>("max_queued_requests", max_queued_requests, 1, kMaxQueuedRequests);
  violations.CheckRange<int64_t>("group_timeout_ns", group_timeout_ns, 1, kMaxGroupTimeoutNs);
  violations.CheckRange<int64_t>("max_logprobs", sampling_limits.max_logprobs, 0, 1 << 20);
  violations.CheckRange<int64_t>("max_stop_strings", sampling_limits.max_stop_strings, 0, 1 << 10);
  violations.CheckRange<int64_t>("max_stop_bytes", sampling_limits.max_stop_bytes, 0, 1 << 16);
  violations.CheckRange<int64_t>("max_stop_token_ids", sampling_limits.max_stop_token_ids, 0,
                                 1 << 16);
  violations.CheckRange<int64_t>("max_logit_bias", sampling_limits.max_logit_bias, 0, 1 << 20);
  return violations.ToStatus();
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const EngineConfig& config,
                                                       std::unique_ptr<Executor> executor,
                                                       const Tokenizer* tokenizer,
                                                       EngineObserver* observer,
                                                       const Clock* clock) {
  if (executor == nullptr || tokenizer == nullptr || clock == nullptr) {
    return InvalidArgument("the engine needs an executor, a tokenizer and a clock");
  }
  NIBBLE_RETURN_IF_ERROR(config.Validate());
  const ExecutorLimits limits = executor->limits();
  NIBBLE_RETURN_IF_ERROR(CheckExecutor(*executor, config));

  // A sequence must fit the KV cache alone, or preempting all others would not let it go on.
  const int64_t max_model_len =
      std::min(limits.max_model_len, limits.num_blocks * limits.block_size);
  if (max_model_len < limits.max_model_len) {
    log::Warning("the context is {} tokens, not {}: the KV cache holds no more", max_model_len,
                 limits.max_model_len);
  }
  if (!config.enable_chunked_prefill && config.max_num_batched_tokens < max_model_len) {
    return InvalidArgument(
        "max_num_batched_tokens is {}, must be at least the context of {} tokens without chunked "
        "prefill",
        config.max_num_batched_tokens, max_model_len);
  }
  EngineConfig complete = config;
  complete.sampling_limits.vocab_size = limits.vocab_size;
  complete.sampling_limits.max_model_len = max_model_len;
  complete.sampling_limits.max_logprobs =
      static_cast<int>(std::min<int64_t>(complete.sampling_limits.max_logprobs, limits.vocab_size));
  const SchedulerConfig scheduler_config{.max_num_seqs = config.max_num_seqs,
                                         .max_num_batched_tokens = config.max_num_batched_tokens,
                                         .num_blocks = limits.num_blocks,
                                         .block_size = limits.block_size,
                                         .max_model_len = max_model_len,
                                         .enable_chunked_prefill = config.enable_chunked_prefill,
                                         .enable_prefix_caching = config.enable_prefix_caching,
                                         .eos_token_ids = config.eos_token_ids,
                                         .max_steps_in_flight = executor->max_steps_in_flight()};
  return std::make_unique<EngineLoop>(std::move(complete), scheduler_config, std::move(executor),
                                      tokenizer, observer, clock);
}

}  // namespace nibble::engine
