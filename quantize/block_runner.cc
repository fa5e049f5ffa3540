// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/block_runner.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <numeric>

#include "base/check.h"
#include "kernels/activation/silu_mul.h"
#include "kernels/attention/paged_attention.h"
#include "kernels/norm/rms_norm.h"
#include "kernels/quant/quantize_rows.h"

namespace nibble::quantize {
namespace {

// Indices into Matrices().
enum MatrixIdx : size_t { kQ, kK, kV, kO, kGate, kUp, kDown };

constexpr int64_t kBlockSize = 16;     // positions of a block of the KV cache
constexpr int64_t kRowsPerRun = 1024;  // of the matrix products
constexpr int64_t kElementsPerPiece = 1 << 14;

}  // namespace

absl::StatusOr<BlockRunner> BlockRunner::Create(const engine::ModelConfig& config,
                                                const kernels::RopeTable& rope,
                                                const BlockWeights& weights, int activation_bits,
                                                Isa isa, ThreadPool* pool) {
  BlockRunner runner(config, rope, isa, pool);
  runner.layer_idx_ = weights.layer_idx;
  runner.activation_bits_ = activation_bits;
  runner.input_norm_ = weights.input_norm;
  runner.post_attention_norm_ = weights.post_attention_norm;
  runner.q_norm_ = weights.q_norm;
  runner.k_norm_ = weights.k_norm;
  const auto matrices = Matrices(weights);
  for (size_t i = 0; i < kNumMatrices; ++i) {
    const Matrix& matrix = *matrices[i];
    auto packed = kernels::PackDense(matrix.weight.data(), DType::kF32, matrix.n, matrix.k,
                                     DType::kF32, isa, pool);
    if (!packed.ok()) return Annotate(packed.status(), matrix.name);
    runner.layers_[i] = {.weight = std::move(packed).value(), .bias = matrix.bias};
  }
  return runner;
}

int64_t BlockRunner::SequencesPerRun(int64_t length) {
  return std::max<int64_t>(1, kRowsPerRun / length);
}

absl::Status BlockRunner::RunAll(HiddenStates* states, const SiteObserver& observer) {
  const int64_t step = SequencesPerRun(states->length);
  for (int64_t seq = 0; seq < states->num_seqs; seq += step) {
    NIBBLE_RETURN_IF_ERROR(Run(states->Sequence(seq), std::min(step, states->num_seqs - seq),
                               states->length, observer));
  }
  return absl::OkStatus();
}

void BlockRunner::Reserve(int64_t num_seqs, int64_t length) {
  if (num_seqs == num_seqs_ && length == length_) return;
  const int64_t num_rows = num_seqs * length;
  const int64_t blocks_per_seq = (length + kBlockSize - 1) / kBlockSize;
  positions_.resize(static_cast<size_t>(num_rows));
  slots_.resize(static_cast<size_t>(num_rows));
  query_start_.assign(1, 0);
  for (int64_t seq = 0; seq < num_seqs; ++seq) {
    for (int64_t i = 0; i < length; ++i) {
      positions_[static_cast<size_t>(seq * length + i)] = static_cast<int32_t>(i);
      slots_[static_cast<size_t>(seq * length + i)] =
          static_cast<int32_t>(seq * blocks_per_seq * kBlockSize + i);
    }
    query_start_.push_back(static_cast<int32_t>((seq + 1) * length));
  }
  context_lens_.assign(static_cast<size_t>(num_seqs), static_cast<int32_t>(length));
  block_tables_.resize(static_cast<size_t>(num_seqs * blocks_per_seq));
  std::iota(block_tables_.begin(), block_tables_.end(), 0);

  const auto floats = [num_rows](int64_t columns) {
    return AlignedBuffer<float>(static_cast<size_t>(num_rows * columns));
  };
  const int64_t q_size = config_.num_heads * config_.head_dim;
  const int64_t kv_size = config_.num_kv_heads * config_.head_dim;
  input_ = floats(config_.hidden_size);
  delta_ = floats(config_.hidden_size);
  qkv_ = floats(q_size + 2 * kv_size);
  attention_ = floats(q_size);
  gate_up_ = floats(2 * config_.intermediate_size);
  ffn_ = floats(config_.intermediate_size);
  if (activation_bits_ == 8) {
    const int64_t max_k = std::max({config_.hidden_size, q_size, config_.intermediate_size});
    codes_ = AlignedBuffer<int8_t>(static_cast<size_t>(num_rows * max_k));
    scales_ = floats(1);
    sums_ = AlignedBuffer<int32_t>(static_cast<size_t>(num_rows));
  }
  const int64_t num_blocks = num_seqs * blocks_per_seq;
  keys_ = AlignedBuffer<float>::Zeroed(static_cast<size_t>(num_blocks * kBlockSize * kv_size));
  values_ = AlignedBuffer<float>::Zeroed(static_cast<size_t>(num_blocks * kBlockSize * kv_size));
  kv_cache_ = {.keys = keys_.data(),
               .values = values_.data(),
               .dtype = DType::kF32,
               .num_blocks = num_blocks,
               .num_kv_heads = config_.num_kv_heads,
               .block_size = kBlockSize,
               .head_dim = config_.head_dim};
  num_seqs_ = num_seqs;
  length_ = length;
}

absl::Status BlockRunner::Run(float* x, int64_t num_seqs, int64_t length,
                              const SiteObserver& observer) {
  NIBBLE_CHECK_LE(length, rope_.max_positions);
  Reserve(num_seqs, length);
  const int64_t num_rows = num_seqs * length;
  const int64_t hidden = config_.hidden_size;
  const int64_t q_size = config_.num_heads * config_.head_dim;
  const int64_t kv_size = config_.num_kv_heads * config_.head_dim;
  const int64_t qkv_size = q_size + 2 * kv_size;
  const int64_t ffn = config_.intermediate_size;

  Norm(x, nullptr, input_norm_, num_rows);
  NIBBLE_RETURN_IF_ERROR(Enter(Site::kQkv, input_.data(), num_rows, hidden, observer));
  Multiply(kQ, input_.data(), num_rows, qkv_.data(), qkv_size);
  Multiply(kK, input_.data(), num_rows, qkv_.data() + q_size, qkv_size);
  Multiply(kV, input_.data(), num_rows, qkv_.data() + q_size + kv_size, qkv_size);
  Attend(num_seqs, length);
  NIBBLE_RETURN_IF_ERROR(Enter(Site::kO, attention_.data(), num_rows, q_size, observer));
  Multiply(kO, attention_.data(), num_rows, delta_.data(), hidden);

  Norm(x, delta_.data(), post_attention_norm_, num_rows);
  NIBBLE_RETURN_IF_ERROR(Enter(Site::kGateUp, input_.data(), num_rows, hidden, observer));
  Multiply(kGate, input_.data(), num_rows, gate_up_.data(), 2 * ffn);
  Multiply(kUp, input_.data(), num_rows, gate_up_.data() + ffn, 2 * ffn);
  kernels::SiluMul({.num_rows = num_rows,
                    .intermediate = ffn,
                    .gate_up = gate_up_.data(),
                    .gate_up_stride = 2 * ffn,
                    .y = ffn_.data(),
                    .y_stride = ffn},
                   isa_, pool_);
  NIBBLE_RETURN_IF_ERROR(Enter(Site::kDown, ffn_.data(), num_rows, ffn, observer));
  Multiply(kDown, ffn_.data(), num_rows, delta_.data(), hidden);
  pool_->ParallelFor(num_rows * hidden, kElementsPerPiece, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) x[i] += delta_.data()[i];
  });
  return absl::OkStatus();
}

void BlockRunner::Norm(float* x, const float* delta, const std::vector<float>& weight,
                       int64_t num_rows) {
  const int64_t hidden = config_.hidden_size;
  kernels::RmsNorm({.num_rows = num_rows,
                    .hidden = hidden,
                    .x = x,
                    .x_stride = hidden,
                    .delta = delta,
                    .delta_stride = hidden,
                    .weight = weight.data(),
                    .epsilon = config_.rms_norm_eps,
                    .y = input_.data(),
                    .y_stride = hidden},
                   isa_, pool_);
}

void BlockRunner::NormHeads(float* heads, int64_t num_heads, const std::vector<float>& weight,
                            int64_t num_rows) {
  const int64_t stride = (config_.num_heads + 2 * config_.num_kv_heads) * config_.head_dim;
  for (int64_t head = 0; head < num_heads; ++head) {
    float* const rows = heads + head * config_.head_dim;
    kernels::RmsNorm({.num_rows = num_rows,
                      .hidden = config_.head_dim,
                      .x = rows,
                      .x_stride = stride,
                      .weight = weight.data(),
                      .epsilon = config_.rms_norm_eps,
                      .y = rows,
                      .y_stride = stride},
                     isa_, pool_);
  }
}

// attention_ from qkv_.
void BlockRunner::Attend(int64_t num_seqs, int64_t length) {
  const int64_t num_rows = num_seqs * length;
  const int64_t q_size = config_.num_heads * config_.head_dim;
  const int64_t kv_size = config_.num_kv_heads * config_.head_dim;
  const int64_t stride = q_size + 2 * kv_size;
  float* const k = qkv_.data() + q_size;
  if (config_.qk_norm) {
    NormHeads(qkv_.data(), config_.num_heads, q_norm_, num_rows);
    NormHeads(k, config_.num_kv_heads, k_norm_, num_rows);
  }
  kernels::ApplyRope(rope_,
                     {.num_tokens = num_rows,
                      .positions = positions_.data(),
                      .x = qkv_.data(),
                      .x_stride = stride,
                      .num_heads = config_.num_heads + config_.num_kv_heads,
                      .head_dim = config_.head_dim},
                     isa_, pool_);
  kernels::KvAppend(kv_cache_,
                    {.num_tokens = num_rows,
                     .k = k,
                     .k_stride = stride,
                     .v = k + kv_size,
                     .v_stride = stride,
                     .slot_mapping = slots_.data()},
                    isa_, pool_);
  kernels::PagedAttention(
      kv_cache_,
      {.num_seqs = num_seqs,
       .num_heads = config_.num_heads,
       .q = qkv_.data(),
       .q_stride = stride,
       .query_start = query_start_.data(),
       .context_lens = context_lens_.data(),
       .block_tables = block_tables_.data(),
       .max_blocks_per_seq = (length + kBlockSize - 1) / kBlockSize,
       .scale = 1.0F / std::sqrt(static_cast<float>(config_.head_dim)),
       .sliding_window = config_.sliding_window[static_cast<size_t>(layer_idx_)],
       .out = attention_.data(),
       .out_stride = q_size},
      isa_, pool_);
}

absl::Status BlockRunner::Enter(Site site, float* input, int64_t num_rows, int64_t k,
                                const SiteObserver& observer) {
  if (observer) NIBBLE_RETURN_IF_ERROR(observer(site, input, num_rows, k));
  if (activation_bits_ != 8) return absl::OkStatus();
  const kernels::QuantizedRows rows = {
      .values = codes_.data(), .scales = scales_.data(), .sums = sums_.data(), .stride = k};
  kernels::QuantizeRows(input, k, num_rows, k, rows, isa_, pool_);
  pool_->ParallelFor(num_rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float scale = rows.scales[row];
      const int8_t* const codes = rows.values + row * k;
      float* const out = input + row * k;
      for (int64_t i = 0; i < k; ++i) out[i] = scale * static_cast<float>(codes[i]);
    }
  });
  return absl::OkStatus();
}

void BlockRunner::Multiply(size_t matrix_idx, const float* input, int64_t num_rows, float* out,
                           int64_t out_stride) {
  const Layer& layer = layers_[matrix_idx];
  kernels::Run(*layer.weight,
               {.m = num_rows,
                .a = input,
                .a_stride = layer.weight->desc().k,
                .bias = layer.bias.empty() ? nullptr : layer.bias.data(),
                .d = out,
                .d_stride = out_stride},
               pool_);
}

}  // namespace nibble::quantize
