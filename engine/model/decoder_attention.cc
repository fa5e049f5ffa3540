// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Attention of a layer, and the norm before each half.

#include <cmath>
#include <cstring>

#include "engine/model/decoder.h"
#include "kernels/attention/paged_attention.h"
#include "kernels/norm/rms_norm.h"

namespace nibble::engine {

void DecoderModel::Normalize(const std::vector<float>& weight, int64_t num_rows, bool add_delta,
                             const LinearInput& out, ThreadPool* pool) {
  kernels::RmsNorm({.num_rows = num_rows,
                    .hidden = config_.hidden_size,
                    .x = x_.data(),
                    .x_stride = config_.hidden_size,
                    .delta = add_delta ? delta_.data() : nullptr,
                    .delta_stride = config_.hidden_size,
                    .weight = weight.data(),
                    .epsilon = config_.rms_norm_eps,
                    .y = out.values,
                    .y_stride = out.stride,
                    .y8 = out.quantized},
                   isa_, pool);
}

void DecoderModel::ProjectQkv(const DecoderLayer& layer, const StepPlan& plan,
                              const kernels::KvCacheView& cache, bool first, ThreadPool* pool) {
  const int64_t num_tokens = plan.num_tokens();
  const LinearInput input = activations_.For(layer.qkv);
  Normalize(layer.input_norm, num_tokens, /*add_delta=*/!first, input, pool);
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

// Their residual stream and attention's output move to the front.
std::span<const int32_t> DecoderModel::KeepRows(const StepPlan& plan) {
  const std::vector<int32_t>& rows = plan.logits_indices;
  if (plan.num_samples() == plan.num_tokens()) return plan.positions;
  const auto move = [&rows](float* matrix, int64_t columns) {
    for (size_t i = 0; i < rows.size(); ++i) {
      if (static_cast<size_t>(rows[i]) == i) continue;
      std::memcpy(matrix + static_cast<int64_t>(i) * columns, matrix + rows[i] * columns,
                  static_cast<size_t>(columns) * sizeof(float));
    }
  };
  move(x_.data(), config_.hidden_size);
  move(attention_.data(), q_size_);
  for (size_t i = 0; i < rows.size(); ++i) {
    kept_positions_[i] = plan.positions[static_cast<size_t>(rows[i])];
  }
  return {kept_positions_.data(), rows.size()};
}

}  // namespace nibble::engine
