// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/decoder.h"

#include <algorithm>
#include <new>
#include <utility>

#include "base/check.h"
#include "engine/model/memory.h"

namespace nibble::engine {
namespace {

int64_t FloatBytes(const std::vector<float>& values) {
  return static_cast<int64_t>(values.size() * sizeof(float));
}

bool HasDenseLayers(const DecoderWeights& weights) {
  return !std::all_of(weights.layers.begin(), weights.layers.end(),
                      [](const DecoderLayer& layer) { return layer.moe.has_value(); });
}

}  // namespace

int64_t DecoderWeights::size_bytes() const {
  int64_t bytes =
      static_cast<int64_t>(embedding.rows.size()) + FloatBytes(final_norm) + lm_head.size_bytes();
  for (const DecoderLayer& layer : layers) {
    bytes += FloatBytes(layer.input_norm) + FloatBytes(layer.q_norm) + FloatBytes(layer.k_norm) +
             FloatBytes(layer.post_attention_norm);
    for (const Linear* linear : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) {
      bytes += linear->size_bytes();
    }
    if (layer.moe.has_value()) bytes += layer.moe->size_bytes();
  }
  return bytes;
}

bool DecoderWeights::reorders() const {
  return lm_head.reorders() ||
         std::any_of(layers.begin(), layers.end(), [](const DecoderLayer& layer) {
           return layer.qkv.reorders() || layer.o.reorders() || layer.gate_up.reorders() ||
                  layer.down.reorders() || (layer.moe.has_value() && layer.moe->reorders());
         });
}

DecoderModel::DecoderModel(ModelConfig config, DecoderWeights weights, const LoadOptions& options)
    : config_(std::move(config)),
      place_(options.place),
      rank_config_(RankConfig(config_, place_)),
      weights_(std::move(weights)),
      isa_(options.isa),
      q_size_(rank_config_.num_heads * config_.head_dim),
      kv_size_(rank_config_.num_kv_heads * config_.head_dim),
      qkv_size_(q_size_ + 2 * kv_size_),
      dense_intermediate_size_(HasDenseLayers(weights_) ? rank_config_.intermediate_size : 0),
      activation_forms_({.floats = true, .int8 = true, .reordered = weights_.reorders()}) {
  NIBBLE_CHECK_EQ(static_cast<int64_t>(weights_.layers.size()), rank_config_.num_layers);
  NIBBLE_CHECK_EQ(static_cast<int64_t>(rank_config_.sliding_window.size()),
                  rank_config_.num_layers);
  if (!config_.moe.has_value()) return;
  std::vector<const MoeWeights*> layers;
  for (const DecoderLayer& layer : weights_.layers) {
    layers.push_back(layer.moe.has_value() ? &*layer.moe : nullptr);
  }
  moe_.emplace(config_, place_, *options.expert_layout, std::move(layers),
               LayersOf(config_, place_).begin, options.check_routing, isa_);
}

absl::StatusOr<std::unique_ptr<KvCache>> DecoderModel::MakeKvCache(int64_t num_blocks,
                                                                   int64_t block_size) const {
  NIBBLE_ASSIGN_OR_RETURN(HostKvCache cache,
                          HostKvCache::Create(rank_config_, num_blocks, block_size, kv_dtype()));
  return std::make_unique<HostKvCache>(std::move(cache));
}

KvMemory DecoderModel::kv_memory() const { return {.available_bytes = AvailableMemoryBytes()}; }

absl::Status DecoderModel::Forward(const StepPlan& plan, KvCache* any_cache, float* logits,
                                   ThreadPool* pool) {
  auto* const cache = dynamic_cast<HostKvCache*>(any_cache);
  if (cache == nullptr) return InvalidArgument("the KV cache is not in this host's memory");
  NIBBLE_RETURN_IF_ERROR(checker_.Check(plan, {.vocab_size = config_.vocab_size,
                                               .max_positions = config_.max_position_embeddings,
                                               .num_blocks = cache->num_blocks(),
                                               .block_size = cache->block_size()}));
  const int64_t num_tokens = plan.num_tokens();
  if (num_tokens == 0) return absl::OkStatus();
  NIBBLE_RETURN_IF_ERROR(CheckCommunicator());
  NIBBLE_RETURN_IF_ERROR(GrowFor(plan, pool));

  NIBBLE_RETURN_IF_ERROR(place_.is_first_stage() ? Embed(plan, pool) : ReceiveRows(num_tokens));
  if (moe_.has_value()) moe_->BeginStep();
  std::span<const int32_t> positions = plan.positions;
  for (int64_t l = 0; l < rank_config_.num_layers; ++l) {
    const kernels::KvCacheView layer_cache = cache->layer(l);
    ProjectQkv(weights_.layers[static_cast<size_t>(l)], plan, layer_cache, l == 0, pool);
    const bool is_last = place_.is_last_stage() && l + 1 == rank_config_.num_layers;
    // Beyond the last layer's keys and values, only the rows that are sampled matter.
    if (is_last && plan.num_samples() == 0) break;
    Attend(l, plan, layer_cache, pool);
    if (is_last) positions = KeepRows(plan);
    NIBBLE_RETURN_IF_ERROR(FeedForward(l, positions, pool));
  }
  if (moe_.has_value()) NIBBLE_RETURN_IF_ERROR(moe_->CheckRouting(communicator_));
  if (!place_.is_last_stage()) return SendRows(num_tokens, pool);
  return plan.num_samples() == 0 ? absl::OkStatus()
                                 : ComputeLogits(plan.num_samples(), logits, pool);
}

absl::Status DecoderModel::ComputeLogits(int64_t num_rows, float* logits, ThreadPool* pool) {
  const LinearInput input = activations_.For(weights_.lm_head);
  Normalize(weights_.final_norm, num_rows, /*add_delta=*/true, input, pool);
  if (place_.size == 1) {
    weights_.lm_head.Run(input, num_rows, logits, pool);
    return absl::OkStatus();
  }
  weights_.lm_head.Run(input, num_rows, own_logits_.data(), pool);
  return GatherLogits(num_rows, logits, pool);
}

absl::Status DecoderModel::Reserve(const StepLimits& limits, ThreadPool* pool) {
  NIBBLE_RETURN_IF_ERROR(CheckStepLimits(config_, limits));
  if (row_capacity_ == 0) {  // all at once, before any of it is taken
    NIBBLE_RETURN_IF_ERROR(CheckMemory(
        StepBytes(limits), fmt::format("a step of {} tokens with logits of {} sequences",
                                       limits.max_tokens, limits.max_samples)));
  }
  NIBBLE_RETURN_IF_ERROR(ReserveRows(limits.max_tokens));
  NIBBLE_RETURN_IF_ERROR(ReserveSamples(limits.max_samples));
  return ReservePositions(limits.max_positions, pool);
}

int64_t DecoderModel::StepBytes(const StepLimits& limits) const {
  return RowBytes(limits.max_tokens) + SampleBytes(limits.max_samples) +
         PositionBytes(limits.max_positions) + host_logits_bytes(limits.max_samples);
}

int64_t DecoderModel::RowBytes(int64_t num_rows) const {
  const int64_t rows = (num_rows + 63) / 64 * 64;
  const int64_t intermediate = dense_intermediate_size_;
  const int64_t max_k = std::max({config_.hidden_size, q_size_, intermediate});
  const int64_t floats_per_row = 2 * config_.hidden_size + qkv_size_ + q_size_ + 2 * intermediate;
  return rows * (floats_per_row * 4 + ActivationBuffer::BytesPerRow(max_k, activation_forms_) + 4) +
         (moe_.has_value() ? moe_->BytesFor(rows) : 0);
}

// rotary_dim / 2 cosines and as many sines.
int64_t DecoderModel::PositionBytes(int64_t num_positions) const {
  return num_positions * config_.rope.rotary_dim * 4;
}

absl::Status DecoderModel::ReserveRows(int64_t num_rows) {
  if (num_rows <= row_capacity_) return absl::OkStatus();
  const int64_t rows = (num_rows + 63) / 64 * 64;
  const int64_t intermediate = dense_intermediate_size_;
  const int64_t max_k = std::max({config_.hidden_size, q_size_, intermediate});
  const int64_t bytes = RowBytes(num_rows);
  NIBBLE_RETURN_IF_ERROR(CheckMemory(bytes, fmt::format("a step of {} tokens", num_rows)));
  row_capacity_ = 0;
  // Zeroed: memory that was never written is not yet the process's.
  const auto allocate = [rows](int64_t columns) {
    return AlignedBuffer<float>::Zeroed(static_cast<size_t>(rows * columns));
  };
  try {
    x_ = allocate(config_.hidden_size);
    delta_ = allocate(config_.hidden_size);
    qkv_ = allocate(qkv_size_);
    attention_ = allocate(q_size_);
    gate_up_ = allocate(2 * intermediate);
    activations_.Allocate(rows, max_k, activation_forms_);
    kept_positions_.resize(static_cast<size_t>(rows));
    if (moe_.has_value()) moe_->Allocate(rows);
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("{} bytes for a step of {} tokens could not be allocated", bytes,
                             num_rows);
  }
  row_capacity_ = rows;
  return absl::OkStatus();
}

absl::Status DecoderModel::ReservePositions(int64_t num_positions, ThreadPool* pool) {
  if (num_positions <= rope_.max_positions) return absl::OkStatus();
  const int64_t bytes = PositionBytes(num_positions);
  NIBBLE_RETURN_IF_ERROR(
      CheckMemory(bytes, fmt::format("the RoPE table of {} positions", num_positions)));
  try {
    rope_ = kernels::MakeRopeTable(config_.rope, num_positions, pool);
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("{} bytes for the RoPE table of {} positions could not be allocated",
                             bytes, num_positions);
  }
  return absl::OkStatus();
}

// For callers that reserve nothing. Models declare up to millions of positions and such callers use
// few of them, so the table doubles.
absl::Status DecoderModel::GrowFor(const StepPlan& plan, ThreadPool* pool) {
  NIBBLE_RETURN_IF_ERROR(ReserveRows(plan.num_tokens()));
  NIBBLE_RETURN_IF_ERROR(ReserveSamples(plan.num_samples()));
  const int64_t needed = *std::max_element(plan.context_lens.begin(), plan.context_lens.end());
  if (needed <= rope_.max_positions) return absl::OkStatus();
  constexpr int64_t kInitialPositions = 4096;
  return ReservePositions(std::min(config_.max_position_embeddings,
                                   std::max({needed, 2 * rope_.max_positions, kInitialPositions})),
                          pool);
}

}  // namespace nibble::engine
