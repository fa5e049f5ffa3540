// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/layer_rig.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <new>
#include <utility>

#include "bench/cache_fill.h"
#include "kernels/activation/silu_mul.h"
#include "kernels/attention/paged_attention.h"
#include "kernels/norm/rms_norm.h"

namespace nibble::bench {
namespace {

constexpr int64_t kBlockSize = 16;

engine::ModelConfig CacheConfig(const LayerShape& shape, size_t num_copies) {
  engine::ModelConfig config;
  config.num_layers = static_cast<int64_t>(num_copies);
  config.num_kv_heads = shape.num_kv_heads;
  config.head_dim = shape.head_dim;
  return config;
}

// Gives the time since the last one to an op.
class LapTimer {
 public:
  explicit LapTimer(std::array<double, kNumLayerOps>* seconds) : seconds_(seconds) {}
  void Lap(LayerOp op) {
    const auto now = std::chrono::steady_clock::now();
    (*seconds_)[static_cast<size_t>(op)] += std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }

 private:
  std::array<double, kNumLayerOps>* seconds_;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace

std::string_view ToString(LayerOp op) {
  constexpr std::string_view kNames[kNumLayerOps] = {
      "norm+quantize", "qkv",     "rope+append",   "attention", "quantize", "o",
      "norm+quantize", "gate_up", "silu+quantize", "down"};
  return kNames[static_cast<size_t>(op)];
}

absl::StatusOr<engine::Linear> MakeRandomLinear(const WeightKind& kind, int64_t n, int64_t k,
                                                Isa isa, ThreadPool* pool) {
  kernels::GemmDesc desc = kind.desc;
  desc.n = n;
  desc.k = k;
  std::vector<engine::Linear::Part> parts(1);
  NIBBLE_ASSIGN_OR_RETURN(parts[0].weight, PackRandomWeight(desc, isa, pool));
  return engine::Linear(std::move(parts), {});
}

int64_t LayerWeights::size_bytes() const {
  return qkv.size_bytes() + o.size_bytes() + gate_up.size_bytes() + down.size_bytes();
}

absl::StatusOr<std::vector<LayerWeights>> MakeLayerCopies(const LayerShape& shape,
                                                          const WeightKind& kind,
                                                          int64_t rotated_bytes, Isa isa,
                                                          ThreadPool* pool) {
  const auto make = [&](int64_t n, int64_t k) { return MakeRandomLinear(kind, n, k, isa, pool); };
  const int64_t q_size = shape.num_heads * shape.head_dim;
  const int64_t qkv_size = q_size + 2 * shape.num_kv_heads * shape.head_dim;
  std::vector<LayerWeights> copies;
  for (int64_t bytes = 0; bytes < rotated_bytes; bytes += copies.back().size_bytes()) {
    LayerWeights layer;
    NIBBLE_ASSIGN_OR_RETURN(layer.qkv, make(qkv_size, shape.hidden_size));
    NIBBLE_ASSIGN_OR_RETURN(layer.o, make(shape.hidden_size, q_size));
    NIBBLE_ASSIGN_OR_RETURN(layer.gate_up, make(2 * shape.intermediate_size, shape.hidden_size));
    NIBBLE_ASSIGN_OR_RETURN(layer.down, make(shape.hidden_size, shape.intermediate_size));
    copies.push_back(std::move(layer));
  }
  return copies;
}

absl::StatusOr<LayerStep> LayerStep::Create(const LayerShape& shape, const LayerCase& layer_case,
                                            DType kv_dtype, const std::vector<LayerWeights>& layers,
                                            Isa isa, ThreadPool* pool) {
  const int64_t num_blocks =
      layer_case.num_seqs * ((layer_case.context + kBlockSize - 1) / kBlockSize);
  NIBBLE_ASSIGN_OR_RETURN(engine::HostKvCache cache,
                          engine::HostKvCache::Create(CacheConfig(shape, layers.size()), num_blocks,
                                                      kBlockSize, kv_dtype));
  try {
    LayerStep step(shape, layer_case, layers, std::move(cache), isa, pool);
    step.cache_bytes_per_token_ =
        engine::KvCache::BlockBytes(CacheConfig(shape, 1), kBlockSize, kv_dtype) / kBlockSize;
    return step;
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("memory for {} rows could not be allocated", layer_case.num_rows());
  }
}

LayerStep::LayerStep(const LayerShape& shape, const LayerCase& layer_case,
                     const std::vector<LayerWeights>& layers, engine::HostKvCache cache, Isa isa,
                     ThreadPool* pool)
    : shape_(shape),
      case_(layer_case),
      layers_(&layers),
      cache_(std::move(cache)),
      isa_(isa),
      pool_(pool),
      q_size_(shape.num_heads * shape.head_dim),
      kv_size_(shape.num_kv_heads * shape.head_dim),
      qkv_size_(q_size_ + 2 * kv_size_) {
  const int64_t rows = case_.num_rows();
  const auto allocate = [rows](int64_t columns) {
    return AlignedBuffer<float>::Zeroed(static_cast<size_t>(rows * columns));
  };
  norm_.assign(static_cast<size_t>(shape.hidden_size), 1.0F);
  x_ = allocate(shape.hidden_size);
  delta_ = allocate(shape.hidden_size);
  qkv_ = allocate(qkv_size_);
  attended_ = allocate(q_size_);
  gate_up_ = allocate(2 * shape.intermediate_size);
  activations_.Allocate(rows, std::max({shape.hidden_size, q_size_, shape.intermediate_size}),
                        {.floats = true, .int8 = true});
  rope_ = kernels::MakeRopeTable({.rotary_dim = shape.head_dim}, case_.context, pool);
  block_tables_ = ShuffledBlocks(cache_.num_blocks());
  const int64_t blocks_per_seq = cache_.num_blocks() / case_.num_seqs;
  query_start_.push_back(0);
  for (int64_t s = 0; s < case_.num_seqs; ++s) {
    for (int64_t i = case_.context - case_.num_new; i < case_.context; ++i) {
      const int32_t block = block_tables_[static_cast<size_t>(s * blocks_per_seq + i / kBlockSize)];
      positions_.push_back(static_cast<int32_t>(i));
      slots_.push_back(block * static_cast<int32_t>(kBlockSize) +
                       static_cast<int32_t>(i % kBlockSize));
    }
    query_start_.push_back(static_cast<int32_t>(positions_.size()));
    context_lens_.push_back(static_cast<int32_t>(case_.context));
  }
  std::fill(delta_.begin(), delta_.end(), 0.5F);
  FillKvCache(&cache_, {.num_layers = static_cast<int64_t>(layers.size()), .columns = kv_size_},
              isa, pool);
}

std::array<double, kNumLayerOps> LayerStep::Run() {
  std::array<double, kNumLayerOps> seconds = {};
  for (size_t i = 0; i < layers_->size(); ++i) {
    RunLayer((*layers_)[i], cache_.layer(static_cast<int64_t>(i)), &seconds);
  }
  return seconds;
}

void LayerStep::RunLayer(const LayerWeights& layer, const kernels::KvCacheView& cache,
                         std::array<double, kNumLayerOps>* seconds) {
  const int64_t rows = case_.num_rows();
  const auto norm = [&](const engine::Linear& next) {
    const engine::LinearInput input = activations_.For(next);
    kernels::RmsNorm({.num_rows = rows,
                      .hidden = shape_.hidden_size,
                      .x = x_.data(),
                      .x_stride = shape_.hidden_size,
                      .delta = delta_.data(),
                      .delta_stride = shape_.hidden_size,
                      .weight = norm_.data(),
                      .y = input.values,
                      .y_stride = input.stride,
                      .y8 = input.quantized},
                     isa_, pool_);
    return input;
  };
  LapTimer timer(seconds);
  engine::LinearInput input = norm(layer.qkv);
  timer.Lap(LayerOp::kInputNorm);
  layer.qkv.Run(input, rows, qkv_.data(), pool_);
  timer.Lap(LayerOp::kQkv);
  kernels::RopeKvAppend(rope_, cache,
                        {.num_tokens = rows,
                         .q = qkv_.data(),
                         .k = qkv_.data() + q_size_,
                         .v = qkv_.data() + q_size_ + kv_size_,
                         .stride = qkv_size_,
                         .num_heads = shape_.num_heads,
                         .positions = positions_.data(),
                         .slot_mapping = slots_.data()},
                        isa_, pool_);
  timer.Lap(LayerOp::kRopeAppend);
  kernels::PagedAttention(cache,
                          {.num_seqs = case_.num_seqs,
                           .num_heads = shape_.num_heads,
                           .q = qkv_.data(),
                           .q_stride = qkv_size_,
                           .query_start = query_start_.data(),
                           .context_lens = context_lens_.data(),
                           .block_tables = block_tables_.data(),
                           .max_blocks_per_seq = cache_.num_blocks() / case_.num_seqs,
                           .scale = 1.0F / std::sqrt(static_cast<float>(shape_.head_dim)),
                           .out = attended_.data(),
                           .out_stride = q_size_},
                          isa_, pool_);
  timer.Lap(LayerOp::kAttention);
  input = activations_.For(layer.o);
  if (layer.o.takes_int8()) {
    kernels::QuantizeRows(attended_.data(), q_size_, rows, q_size_, input.quantized, isa_, pool_);
  } else {
    input = {.values = attended_.data(), .stride = q_size_};
  }
  timer.Lap(LayerOp::kQuantize);
  layer.o.Run(input, rows, delta_.data(), pool_);
  timer.Lap(LayerOp::kO);
  input = norm(layer.gate_up);
  timer.Lap(LayerOp::kPostNorm);
  layer.gate_up.Run(input, rows, gate_up_.data(), pool_);
  timer.Lap(LayerOp::kGateUp);
  input = activations_.For(layer.down);
  kernels::SiluMul({.num_rows = rows,
                    .intermediate = shape_.intermediate_size,
                    .gate_up = gate_up_.data(),
                    .gate_up_stride = 2 * shape_.intermediate_size,
                    .y = input.values,
                    .y_stride = input.stride,
                    .y8 = input.quantized},
                   isa_, pool_);
  timer.Lap(LayerOp::kSilu);
  layer.down.Run(input, rows, delta_.data(), pool_);
  timer.Lap(LayerOp::kDown);
}

}  // namespace nibble::bench
