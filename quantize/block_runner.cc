// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/block_runner.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "kernels/attention/paged_attention.h"
#include "kernels/norm/rms_norm.h"

namespace nibble::quantize {
namespace {

// Indices into Matrices().
enum MatrixIdx : size_t { kQ, kK, kV, kO };

constexpr int64_t kBlockSize = 16;     // positions of a block of the KV cache
constexpr int64_t kRowsPerRun = 1024;  // of the matrix products
constexpr int64_t kElementsPerPiece = 1 << 14;

}  // namespace

absl::Status BlockRunner::Init(const BlockWeights& weights, int activation_bits) {
  layer_idx_ = weights.layer_idx;
  activation_bits_ = activation_bits;
  input_norm_ = weights.input_norm;
  post_attention_norm_ = weights.post_attention_norm;
  q_norm_ = weights.q_norm;
  k_norm_ = weights.k_norm;
  const Matrix* const matrices[] = {&weights.q, &weights.k, &weights.v, &weights.o};
  for (size_t i = 0; i < attention_layers_.size(); ++i) {
    NIBBLE_ASSIGN_OR_RETURN(attention_layers_[i], DenseLayer::Create(*matrices[i], isa_, pool_));
  }
  if (!weights.moe) return absl::OkStatus();
  NIBBLE_ASSIGN_OR_RETURN(moe_, MoeRunner::Create(*weights.moe, activation_bits, isa_, pool_));
  return absl::OkStatus();
}

absl::StatusOr<BlockRunner> BlockRunner::Create(const engine::ModelConfig& config,
                                                const kernels::RopeTable& rope,
                                                const BlockWeights& weights, int activation_bits,
                                                Isa isa, ThreadPool* pool) {
  BlockRunner runner(config, rope, isa, pool);
  NIBBLE_RETURN_IF_ERROR(runner.Init(weights, activation_bits));
  if (!weights.moe) {
    NIBBLE_ASSIGN_OR_RETURN(runner.feed_forward_,
                            FeedForwardRunner::Create(weights, activation_bits, isa, pool));
    return runner;
  }
  for (const FeedForward& expert : weights.moe->experts) {
    NIBBLE_RETURN_IF_ERROR(runner.moe_->AddExpert(expert, pool));
  }
  return runner;
}

absl::StatusOr<BlockRunner> BlockRunner::Create(const engine::ModelConfig& config,
                                                const kernels::RopeTable& rope,
                                                const QuantizedBlock& block, int activation_bits,
                                                Isa isa, ThreadPool* pool) {
  if (!block.weights.moe) {
    return Create(config, rope, Dequantized(block), activation_bits, isa, pool);
  }
  BlockWeights weights = block.weights;
  const auto matrices = Matrices(weights);
  for (size_t i = 0; i < kAttentionMatrices; ++i) {
    matrices[i]->weight = Dequantize(block.matrices[i]);
  }
  BlockRunner runner(config, rope, isa, pool);
  NIBBLE_RETURN_IF_ERROR(runner.Init(weights, activation_bits));
  size_t matrix_idx = kAttentionMatrices;
  for (FeedForward expert : block.weights.moe->experts) {
    for (Matrix* matrix : {&expert.gate, &expert.up, &expert.down}) {
      matrix->weight = Dequantize(block.matrices[matrix_idx++]);
    }
    NIBBLE_RETURN_IF_ERROR(runner.moe_->AddExpert(expert, pool));
  }
  return runner;
}

absl::StatusOr<BlockRunner> BlockRunner::CreateWithoutExperts(const engine::ModelConfig& config,
                                                              const kernels::RopeTable& rope,
                                                              const BlockWeights& weights,
                                                              int activation_bits, Isa isa,
                                                              ThreadPool* pool) {
  BlockRunner runner(config, rope, isa, pool);
  NIBBLE_RETURN_IF_ERROR(runner.Init(weights, activation_bits));
  runner.has_experts_ = false;
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

  Norm(x, nullptr, input_norm_, num_rows);
  NIBBLE_RETURN_IF_ERROR(Enter(Site::kQkv, input_.data(), num_rows, hidden, observer));
  float* const k = qkv_.data() + q_size;
  attention_layers_[kQ].Multiply(input_.data(), num_rows, qkv_.data(), qkv_size, pool_);
  attention_layers_[kK].Multiply(input_.data(), num_rows, k, qkv_size, pool_);
  attention_layers_[kV].Multiply(input_.data(), num_rows, k + kv_size, qkv_size, pool_);
  Attend(num_seqs, length);
  NIBBLE_RETURN_IF_ERROR(Enter(Site::kO, attention_.data(), num_rows, q_size, observer));
  attention_layers_[kO].Multiply(attention_.data(), num_rows, delta_.data(), hidden, pool_);

  Norm(x, delta_.data(), post_attention_norm_, num_rows);
  NIBBLE_RETURN_IF_ERROR(RunFeedForward(num_rows, observer));
  if (!has_experts_) return absl::OkStatus();
  pool_->ParallelFor(num_rows * hidden, kElementsPerPiece, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) x[i] += delta_.data()[i];
  });
  return absl::OkStatus();
}

absl::Status BlockRunner::RunFeedForward(int64_t num_rows, const SiteObserver& observer) {
  if (feed_forward_) {
    return feed_forward_->Run(input_.data(), num_rows, observer, delta_.data(), &workspace_, pool_);
  }
  if (observer) {
    NIBBLE_RETURN_IF_ERROR(observer(Site::kGateUp, input_.data(), num_rows, config_.hidden_size));
  }
  if (has_experts_) moe_->Run(input_.data(), num_rows, delta_.data(), pool_);
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
  if (activation_bits_ == 8) rounding_.Round(input, num_rows, k, isa_, pool_);
  return absl::OkStatus();
}

}  // namespace nibble::quantize
