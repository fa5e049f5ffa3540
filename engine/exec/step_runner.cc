// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/exec/step_runner.h"

#include <limits>
#include <new>
#include <span>
#include <utility>

#include "engine/model/memory.h"

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

absl::Status CheckStepLimits(const LocalExecutorOptions& options) {
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();  // a plan's indices are int32
  if (options.max_num_batched_tokens < 1 || options.max_num_batched_tokens > kMax) {
    return InvalidArgument("max_num_batched_tokens is {}, the limits are 1 and {}",
                           options.max_num_batched_tokens, kMax);
  }
  if (options.max_num_seqs < 1 || options.max_num_seqs > kMax) {
    return InvalidArgument("max_num_seqs is {}, the limits are 1 and {}", options.max_num_seqs,
                           kMax);
  }
  return absl::OkStatus();
}

absl::StatusOr<AlignedBuffer<float>> MakeLogits(int64_t num_rows, int64_t vocab_size) {
  const int64_t count = num_rows * vocab_size;
  const int64_t bytes = count * static_cast<int64_t>(sizeof(float));
  NIBBLE_RETURN_IF_ERROR(CheckMemory(bytes, fmt::format("the logits of {} sequences", num_rows)));
  try {
    return AlignedBuffer<float>::Zeroed(static_cast<size_t>(count));
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("logits of {} sequences could not be allocated: {} bytes", num_rows,
                             bytes);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<StepRunner>> StepRunner::Create(Model* model,
                                                               const LocalExecutorOptions& options,
                                                               ThreadPool* pool) {
  const ModelConfig& config = model->config();
  LocalExecutorOptions chosen = options;
  if (chosen.max_model_len == 0) chosen.max_model_len = config.max_position_embeddings;
  if (chosen.max_model_len < 1 || chosen.max_model_len > config.max_position_embeddings) {
    return InvalidArgument("max_model_len is {}, the limits are 1 and {} (the model's positions)",
                           chosen.max_model_len, config.max_position_embeddings);
  }
  NIBBLE_RETURN_IF_ERROR(CheckStepLimits(chosen));
  NIBBLE_ASSIGN_OR_RETURN(const Isa isa, ChooseIsa());
  NIBBLE_RETURN_IF_ERROR(model->Reserve({.max_tokens = chosen.max_num_batched_tokens,
                                         .max_positions = chosen.max_model_len,
                                         .max_samples = chosen.max_num_seqs,
                                         .max_seqs = chosen.max_num_seqs,
                                         .block_size = chosen.block_size},
                                        pool));
  NIBBLE_ASSIGN_OR_RETURN(
      AlignedBuffer<float> logits,
      MakeLogits(model->host_logits_rows(chosen.max_num_seqs), config.vocab_size));
  NIBBLE_ASSIGN_OR_RETURN(auto cache, model->MakeKvCache(chosen.num_blocks, chosen.block_size));
  return std::unique_ptr<StepRunner>(
      new StepRunner(model, std::move(cache), std::move(logits), chosen, isa, pool));
}

StepRunner::StepRunner(Model* model, std::unique_ptr<KvCache> cache, AlignedBuffer<float> logits,
                       const LocalExecutorOptions& options, Isa isa, ThreadPool* pool)
    : model_(model),
      cache_(std::move(cache)),
      logits_(std::move(logits)),
      options_(options),
      isa_(isa),
      pool_(pool) {}

ExecutorLimits StepRunner::limits() const {
  return {.num_blocks = options_.num_blocks,
          .block_size = options_.block_size,
          .max_model_len = options_.max_model_len,
          .vocab_size = model_->config().vocab_size};
}

absl::Status StepRunner::CheckSize(const StepPlan& plan) const {
  if (plan.num_tokens() > options_.max_num_batched_tokens) {
    return InvalidArgument("step plan has {} tokens, the limit is {} (max_num_batched_tokens)",
                           plan.num_tokens(), options_.max_num_batched_tokens);
  }
  if (plan.num_samples() > options_.max_num_seqs) {
    return InvalidArgument("step plan has {} logits_indices, the limit is {} (max_num_seqs)",
                           plan.num_samples(), options_.max_num_seqs);
  }
  for (const int64_t context_len : plan.context_lens) {
    if (context_len > options_.max_model_len) {
      return InvalidArgument(
          "step plan has a context of {} tokens, the limit is {} (max_model_len)", context_len,
          options_.max_model_len);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<StepOutput> StepRunner::Run(const StepPlan& plan) {
  if (std::this_thread::get_id() != caller_) {
    pool_->BindCaller();
    caller_ = std::this_thread::get_id();
  }
  NIBBLE_RETURN_IF_ERROR(CheckSize(plan));
  NIBBLE_RETURN_IF_ERROR(CheckSampling(plan, model_->config().vocab_size));
  try {
    return model_->ForwardAndSample(plan, cache_.get(), {.logits = logits_.data(), .isa = isa_},
                                    pool_);
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("memory ran out in a step of {} tokens", plan.num_tokens());
  }
}

}  // namespace nibble::engine
