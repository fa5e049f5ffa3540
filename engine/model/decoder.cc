// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

#include "base/check.h"
#include "engine/model/memory.h"
#include "kernels/activation/silu_mul.h"
#include "kernels/attention/paged_attention.h"
#include "kernels/norm/rms_norm.h"
#include "kernels/quant/quantize_rows.h"

namespace nibble::engine {
namespace {

int64_t FloatBytes(const std::vector<float>& values) {
  return static_cast<int64_t>(values.size() * sizeof(float));
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

DecoderModel::DecoderModel(ModelConfig config, const RankPlace& place, DecoderWeights weights,
                           Isa isa)
    : config_(std::move(config)),
      place_(place),
      rank_config_(RankConfig(config_, place)),
      weights_(std::move(weights)),
      isa_(isa),
      q_size_(rank_config_.num_heads * config_.head_dim),
      kv_size_(rank_config_.num_kv_heads * config_.head_dim),
      qkv_size_(q_size_ + 2 * kv_size_),
      reorders_(weights_.reorders()) {
  NIBBLE_CHECK_EQ(static_cast<int64_t>(weights_.layers.size()), config_.num_layers);
  NIBBLE_CHECK_EQ(static_cast<int64_t>(config_.sliding_window.size()), config_.num_layers);
}

absl::Status DecoderModel::Forward(const StepPlan& plan, KvCache* cache, float* logits,
                                   ThreadPool* pool) {
  NIBBLE_RETURN_IF_ERROR(checker_.Check(plan, {.vocab_size = config_.vocab_size,
                                               .max_positions = config_.max_position_embeddings,
                                               .num_blocks = cache->num_blocks(),
                                               .block_size = cache->block_size()}));
  if (plan.num_tokens() == 0) return absl::OkStatus();
  NIBBLE_RETURN_IF_ERROR(CheckCommunicator());
  NIBBLE_RETURN_IF_ERROR(GrowFor(plan, pool));

  NIBBLE_RETURN_IF_ERROR(Embed(plan, pool));
  int64_t num_rows = plan.num_tokens();
  for (int64_t l = 0; l < config_.num_layers; ++l) {
    const DecoderLayer& layer = weights_.layers[static_cast<size_t>(l)];
    const kernels::KvCacheView layer_cache = cache->layer(l);
    ProjectQkv(layer, plan, layer_cache, l == 0, pool);
    if (l + 1 == config_.num_layers) {
      // Beyond the last layer's keys and values, only the rows that are sampled matter.
      num_rows = plan.num_samples();
      if (num_rows == 0) return absl::OkStatus();
    }
    Attend(l, plan, layer_cache, pool);
    if (num_rows < plan.num_tokens()) KeepRows(plan.logits_indices);
    NIBBLE_RETURN_IF_ERROR(FeedForward(layer, num_rows, pool));
  }
  return ComputeLogits(num_rows, logits, pool);
}

absl::Status DecoderModel::ComputeLogits(int64_t num_rows, float* logits, ThreadPool* pool) {
  const LinearInput input = activations_.For(weights_.lm_head);
  kernels::RmsNorm({.num_rows = num_rows,
                    .hidden = config_.hidden_size,
                    .x = x_.data(),
                    .x_stride = config_.hidden_size,
                    .delta = delta_.data(),
                    .delta_stride = config_.hidden_size,
                    .weight = weights_.final_norm.data(),
                    .epsilon = config_.rms_norm_eps,
                    .y = input.values,
                    .y_stride = input.stride,
                    .y8 = input.quantized},
                   isa_, pool);
  if (place_.size == 1) {
    weights_.lm_head.Run(input, num_rows, logits, pool);
    return absl::OkStatus();
  }
  weights_.lm_head.Run(input, num_rows, own_logits_.data(), pool);
  return GatherLogits(num_rows, logits, pool);
}

absl::Status DecoderModel::Reserve(const StepLimits& limits, ThreadPool* pool) {
  constexpr int64_t kMaxTokens = std::numeric_limits<int32_t>::max();  // a plan's indices are int32
  if (limits.max_tokens < 0 || limits.max_tokens > kMaxTokens) {
    return InvalidArgument("a step of {} tokens: the limits are 0 and {}", limits.max_tokens,
                           kMaxTokens);
  }
  if (limits.max_positions < 0 || limits.max_positions > config_.max_position_embeddings) {
    return InvalidArgument(
        "sequences of {} tokens: the limits are 0 and {} (the model's positions)",
        limits.max_positions, config_.max_position_embeddings);
  }
  if (limits.max_samples < 0 || limits.max_samples > kMaxTokens) {
    return InvalidArgument("{} rows of logits in a step: the limits are 0 and {}",
                           limits.max_samples, kMaxTokens);
  }
  NIBBLE_RETURN_IF_ERROR(ReserveRows(limits.max_tokens));
  NIBBLE_RETURN_IF_ERROR(ReserveSamples(limits.max_samples));
  return ReservePositions(limits.max_positions, pool);
}

absl::Status DecoderModel::ReserveRows(int64_t num_rows) {
  if (num_rows <= row_capacity_) return absl::OkStatus();
  const int64_t rows = (num_rows + 63) / 64 * 64;
  const int64_t intermediate = rank_config_.intermediate_size;
  const int64_t max_k = std::max({config_.hidden_size, q_size_, intermediate});
  const int64_t floats_per_row = 2 * config_.hidden_size + qkv_size_ + q_size_ + 2 * intermediate;
  const int64_t bytes =
      rows * (floats_per_row * 4 + ActivationBuffer::BytesPerRow(max_k, reorders_));
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
    activations_.Allocate(rows, max_k, reorders_);
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("{} bytes for a step of {} tokens could not be allocated", bytes,
                             num_rows);
  }
  row_capacity_ = rows;
  return absl::OkStatus();
}

absl::Status DecoderModel::ReservePositions(int64_t num_positions, ThreadPool* pool) {
  if (num_positions <= rope_.max_positions) return absl::OkStatus();
  // rotary_dim / 2 cosines and as many sines.
  const int64_t bytes = num_positions * config_.rope.rotary_dim * 4;
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

void DecoderModel::ProjectQkv(const DecoderLayer& layer, const StepPlan& plan,
                              const kernels::KvCacheView& cache, bool first, ThreadPool* pool) {
  const int64_t num_tokens = plan.num_tokens();
  const LinearInput input = activations_.For(layer.qkv);
  kernels::RmsNorm({.num_rows = num_tokens,
                    .hidden = config_.hidden_size,
                    .x = x_.data(),
                    .x_stride = config_.hidden_size,
                    .delta = first ? nullptr : delta_.data(),
                    .delta_stride = config_.hidden_size,
                    .weight = layer.input_norm.data(),
                    .epsilon = config_.rms_norm_eps,
                    .y = input.values,
                    .y_stride = input.stride,
                    .y8 = input.quantized},
                   isa_, pool);
  layer.qkv.Run(input, num_tokens, qkv_.data(), pool);

  float* const k = qkv_.data() + q_size_;
  if (config_.qk_norm) {
    NormHeads(qkv_.data(), rank_config_.num_heads, layer.q_norm, num_tokens, pool);
    NormHeads(k, rank_config_.num_kv_heads, layer.k_norm, num_tokens, pool);
  }
  kernels::RopeKvAppend(rope_, cache,
                        {.num_tokens = num_tokens,
                         .q = qkv_.data(),
                         .k = k,
                         .v = k + kv_size_,
                         .stride = qkv_size_,
                         .num_heads = rank_config_.num_heads,
                         .positions = plan.positions.data(),
                         .slot_mapping = plan.slot_mapping.data()},
                        isa_, pool);
}

// RMSNorm of every head of every token. A call takes rows of one stride: the heads of one token, or
// one head of all tokens; whichever is more rows a call.
void DecoderModel::NormHeads(float* heads, int64_t num_heads, const std::vector<float>& weight,
                             int64_t num_rows, ThreadPool* pool) {
  const bool by_token = num_rows < num_heads;
  const int64_t num_calls = by_token ? num_rows : num_heads;
  const int64_t call_step = by_token ? qkv_size_ : config_.head_dim;
  const int64_t stride = by_token ? config_.head_dim : qkv_size_;
  for (int64_t i = 0; i < num_calls; ++i) {
    float* const rows = heads + i * call_step;
    kernels::RmsNorm({.num_rows = by_token ? num_heads : num_rows,
                      .hidden = config_.head_dim,
                      .x = rows,
                      .x_stride = stride,
                      .weight = weight.data(),
                      .epsilon = config_.rms_norm_eps,
                      .y = rows,
                      .y_stride = stride},
                     isa_, pool);
  }
}

void DecoderModel::Attend(int64_t layer_idx, const StepPlan& plan,
                          const kernels::KvCacheView& cache, ThreadPool* pool) {
  kernels::PagedAttention(cache,
                          {.num_seqs = plan.num_seqs(),
                           .num_heads = rank_config_.num_heads,
                           .q = qkv_.data(),
                           .q_stride = qkv_size_,
                           .query_start = plan.query_start.data(),
                           .context_lens = plan.context_lens.data(),
                           .block_tables = plan.block_tables.data(),
                           .max_blocks_per_seq = plan.max_blocks_per_seq,
                           .scale = 1.0F / std::sqrt(static_cast<float>(config_.head_dim)),
                           .sliding_window = config_.sliding_window[static_cast<size_t>(layer_idx)],
                           .out = attention_.data(),
                           .out_stride = q_size_},
                          isa_, pool);
}

// Rows `rows` (ascending) of the residual stream and of the attention's output move to the front.
void DecoderModel::KeepRows(const std::vector<int32_t>& rows) {
  const auto move = [&rows](float* matrix, int64_t columns) {
    for (size_t i = 0; i < rows.size(); ++i) {
      if (static_cast<size_t>(rows[i]) == i) continue;
      std::memcpy(matrix + static_cast<int64_t>(i) * columns, matrix + rows[i] * columns,
                  static_cast<size_t>(columns) * sizeof(float));
    }
  };
  move(x_.data(), config_.hidden_size);
  move(attention_.data(), q_size_);
}

absl::Status DecoderModel::FeedForward(const DecoderLayer& layer, int64_t num_rows,
                                       ThreadPool* pool) {
  LinearInput input = activations_.For(layer.o);
  if (layer.o.takes_int8()) {
    kernels::QuantizeRows(attention_.data(), q_size_, num_rows, q_size_, input.quantized, isa_,
                          pool);
  } else {
    input = {.values = attention_.data(), .stride = q_size_};
  }
  layer.o.Run(input, num_rows, delta_.data(), pool);
  NIBBLE_RETURN_IF_ERROR(SumDelta(num_rows, pool));

  input = activations_.For(layer.gate_up);
  kernels::RmsNorm({.num_rows = num_rows,
                    .hidden = config_.hidden_size,
                    .x = x_.data(),
                    .x_stride = config_.hidden_size,
                    .delta = delta_.data(),
                    .delta_stride = config_.hidden_size,
                    .weight = layer.post_attention_norm.data(),
                    .epsilon = config_.rms_norm_eps,
                    .y = input.values,
                    .y_stride = input.stride,
                    .y8 = input.quantized},
                   isa_, pool);
  layer.gate_up.Run(input, num_rows, gate_up_.data(), pool);

  input = activations_.For(layer.down);
  kernels::SiluMul({.num_rows = num_rows,
                    .intermediate = rank_config_.intermediate_size,
                    .gate_up = gate_up_.data(),
                    .gate_up_stride = 2 * rank_config_.intermediate_size,
                    .y = input.values,
                    .y_stride = input.stride,
                    .y8 = input.quantized},
                   isa_, pool);
  layer.down.Run(input, num_rows, delta_.data(), pool);
  return SumDelta(num_rows, pool);
}

}  // namespace nibble::engine
