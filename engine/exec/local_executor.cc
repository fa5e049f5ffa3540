// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/exec/local_executor.h"

#include <algorithm>
#include <new>
#include <span>
#include <utility>

#include "engine/model/memory.h"
#include "engine/sampling/sampler.h"

namespace nibble::engine {
namespace {

absl::Status CheckIds(std::span<const int32_t> ids, int64_t vocab_size, const char* field,
                      size_t row_idx) {
  for (const int32_t id : ids) {
    if (id < 0 || id >= vocab_size) {
      return InvalidArgument("step plan: sampling[{}].{} has id {}, the limits are 0 and {}",
                             row_idx, field, id, vocab_size - 1);
    }
  }
  return absl::OkStatus();
}

// The sampler indexes the logits with these; its other numbers it takes as they are.
absl::Status CheckSampling(const StepPlan& plan, int64_t vocab_size) {
  if (plan.sampling.size() != plan.logits_indices.size()) {
    return InvalidArgument("step plan has {} sampling rows for {} logits_indices",
                           plan.sampling.size(), plan.logits_indices.size());
  }
  for (size_t i = 0; i < plan.sampling.size(); ++i) {
    const SamplingRow& row = plan.sampling[i];
    for (const auto& [id, bias] : row.logit_bias) {
      NIBBLE_RETURN_IF_ERROR(CheckIds({&id, 1}, vocab_size, "logit_bias", i));
    }
    NIBBLE_RETURN_IF_ERROR(CheckIds(row.banned_token_ids, vocab_size, "banned_token_ids", i));
    NIBBLE_RETURN_IF_ERROR(CheckIds(row.prompt_token_ids, vocab_size, "prompt_token_ids", i));
    NIBBLE_RETURN_IF_ERROR(CheckIds(row.output_token_ids, vocab_size, "output_token_ids", i));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<LocalExecutor>> LocalExecutor::Create(
    std::unique_ptr<Model> model, const LocalExecutorOptions& options, ThreadPool* pool) {
  const ModelConfig& config = model->config();
  const int64_t max_model_len =
      options.max_model_len == 0 ? config.max_position_embeddings : options.max_model_len;
  if (max_model_len < 1 || max_model_len > config.max_position_embeddings) {
    return InvalidArgument("max_model_len is {}, the limits are 1 and {} (the model's positions)",
                           max_model_len, config.max_position_embeddings);
  }
  NIBBLE_ASSIGN_OR_RETURN(KvCache cache, KvCache::Create(config, options.num_blocks,
                                                         options.block_size, model->kv_dtype()));
  const ExecutorLimits limits = {.num_blocks = options.num_blocks,
                                 .block_size = options.block_size,
                                 .max_model_len = max_model_len,
                                 .vocab_size = config.vocab_size};
  return std::unique_ptr<LocalExecutor>(
      new LocalExecutor(std::move(model), std::move(cache), limits, pool));
}

LocalExecutor::LocalExecutor(std::unique_ptr<Model> model, KvCache cache,
                             const ExecutorLimits& limits, ThreadPool* pool)
    : model_(std::move(model)), cache_(std::move(cache)), limits_(limits), pool_(pool) {}

ExecutorLimits LocalExecutor::limits() const { return limits_; }

absl::StatusOr<StepOutput> LocalExecutor::Execute(const StepPlan& plan) {
  // More rows than tokens are refused here because their memory comes before the plan's own check.
  if (plan.num_samples() > plan.num_tokens()) {
    return InvalidArgument("step plan has {} logits_indices for {} tokens", plan.num_samples(),
                           plan.num_tokens());
  }
  NIBBLE_RETURN_IF_ERROR(CheckSampling(plan, limits_.vocab_size));
  const auto num_logits = static_cast<size_t>(plan.num_samples() * limits_.vocab_size);
  if (logits_.size() < num_logits) {
    NIBBLE_RETURN_IF_ERROR(CheckMemory(static_cast<int64_t>(num_logits * sizeof(float)),
                                       fmt::format("the logits of {} tokens", plan.num_samples())));
    try {
      logits_ = AlignedBuffer<float>(num_logits);
    } catch (const std::bad_alloc&) {
      return ResourceExhausted("logits of {} tokens could not be allocated: {} bytes",
                               plan.num_samples(), num_logits * sizeof(float));
    }
  }
  NIBBLE_RETURN_IF_ERROR(model_->Forward(plan, &cache_, logits_.data(), pool_));
  return SampleRows(logits_.data(), limits_.vocab_size, plan.sampling, pool_);
}

}  // namespace nibble::engine
