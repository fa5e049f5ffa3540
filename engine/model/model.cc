// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/model.h"

#include <limits>
#include <new>
#include <utility>

#include "engine/model/decoder.h"
#include "engine/model/model_device.h"
#include "engine/model/safetensors.h"
#include "engine/model/weight_loader.h"
#include "engine/sampling/sampler.h"

namespace nibble::engine {

namespace {

// `options` with the layout of experts that a model has, which is none of a dense one.
absl::StatusOr<LoadOptions> WithExpertLayout(const ModelConfig& config, LoadOptions options) {
  if (!config.moe.has_value()) {
    if (options.expert_layout == nullptr) return options;
    return InvalidArgument("a layout of {} experts was given for a model that has none",
                           options.expert_layout->num_experts);
  }
  const int64_t num_experts = config.moe->num_experts;
  if (options.expert_layout == nullptr) {
    options.expert_layout =
        std::make_shared<const ExpertLayout>(ExpertLayout::Uniform(config.num_layers, num_experts));
  }
  NIBBLE_RETURN_IF_ERROR(CheckExpertLayout(*options.expert_layout, config.num_layers, num_experts,
                                           options.place.expert_size));
  return options;
}

}  // namespace

absl::Status CheckStepLimits(const ModelConfig& config, const StepLimits& limits) {
  constexpr int64_t kMaxIndex = std::numeric_limits<int32_t>::max();
  const int64_t max_tokens =
      config.moe.has_value() ? kMaxIndex / config.moe->num_experts_per_tok : kMaxIndex;
  if (limits.max_tokens < 0 || limits.max_tokens > max_tokens) {
    return InvalidArgument("a step of {} tokens: the limits are 0 and {}", limits.max_tokens,
                           max_tokens);
  }
  if (limits.max_positions < 0 || limits.max_positions > config.max_position_embeddings) {
    return InvalidArgument(
        "sequences of {} tokens: the limits are 0 and {} (the model's positions)",
        limits.max_positions, config.max_position_embeddings);
  }
  if (limits.max_samples < 0 || limits.max_samples > kMaxIndex) {
    return InvalidArgument("{} rows of logits in a step: the limits are 0 and {}",
                           limits.max_samples, kMaxIndex);
  }
  if (limits.max_seqs < 0 || limits.max_seqs > kMaxIndex) {
    return InvalidArgument("{} sequences in a step: the limits are 0 and {}", limits.max_seqs,
                           kMaxIndex);
  }
  return absl::OkStatus();
}

StepCosts CostsOf(const Model& model, const StepLimits& limits) {
  constexpr int64_t kRowPadding = 64;  // workspaces are made for multiples of it
  StepLimits fewer_tokens = limits;
  fewer_tokens.max_tokens = limits.max_tokens / 2 / kRowPadding * kRowPadding;
  StepLimits fewer_seqs = limits;
  fewer_seqs.max_seqs = fewer_seqs.max_samples = limits.max_seqs / 2;
  const int64_t all = model.StepBytes(limits);
  const auto per = [&](const StepLimits& smaller, int64_t num_less) {
    return std::max<int64_t>(all - model.StepBytes(smaller), 0) / std::max<int64_t>(num_less, 1);
  };
  return {.token_bytes = per(fewer_tokens, limits.max_tokens - fewer_tokens.max_tokens),
          .seq_bytes = per(fewer_seqs, limits.max_seqs - fewer_seqs.max_seqs)};
}

absl::StatusOr<std::unique_ptr<Model>> Model::Load(const std::string& dir,
                                                   const LoadOptions& options, ThreadPool* pool) {
  NIBBLE_ASSIGN_OR_RETURN(ModelConfig config, LoadModelConfig(dir));
  const int64_t num_slots = options.expert_layout == nullptr ? 0 : options.expert_layout->num_slots;
  if (const absl::Status split = CheckSplit(config, options.place, num_slots); !split.ok()) {
    return Annotate(split, dir);
  }
  try {
    absl::StatusOr<LoadOptions> own = WithExpertLayout(config, options);
    if (own.ok() && own->device != nullptr) own = own->device->Adapt(config, *std::move(own));
    if (!own.ok()) return Annotate(own.status(), dir);
    NIBBLE_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(dir));
    NIBBLE_ASSIGN_OR_RETURN(DecoderWeights weights,
                            LoadDecoderWeights(checkpoint, config, *own, pool));
    weights.kv_dtype = own->kv_cache_dtype.value_or(weights.kv_dtype);
    if (!options.dtype.has_value() && own->dtype.value_or(config.dtype) != config.dtype) {
      weights.warnings.push_back(
          fmt::format("the checkpoint is of {}, which its device computes in {}: --dtype float32 "
                      "rounds nothing",
                      ToString(config.dtype), ToString(*own->dtype)));
    }
    if (own->device != nullptr) {
      return own->device->MakeModel(std::move(config), std::move(weights), *own);
    }
    return std::make_unique<DecoderModel>(std::move(config), std::move(weights), *own);
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("{}: memory ran out while loading the weights", dir);
  }
}

absl::StatusOr<StepOutput> Model::ForwardAndSample(const StepPlan& plan, KvCache* cache,
                                                   const HostSampling& host, ThreadPool* pool) {
  NIBBLE_RETURN_IF_ERROR(Forward(plan, cache, host.logits, pool));
  if (!has_logits()) return StepOutput{};
  return SampleRows(host.logits, config().vocab_size, plan.sampling, pool, host.isa);
}

}  // namespace nibble::engine
