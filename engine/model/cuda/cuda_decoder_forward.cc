// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The forward pass: what a step launches, in order. Nothing here waits, allocates or reads what the
// device has computed, so that all of it can be captured.

#include <cmath>

#include "engine/model/cuda/all_reduce_norm.h"
#include "engine/model/cuda/cuda_decoder.h"
#include "kernels/activation/cuda/silu_mul.h"
#include "kernels/embedding/cuda/embed.h"
#include "kernels/kv/cuda/kv_cache.h"
#include "kernels/norm/cuda/rms_norm.h"
#include "kernels/quant/cuda/quantize_rows.h"

namespace nibble::engine {

using kernels::cuda::DeviceMatrix;

absl::Status CudaDecoderModel::EnqueueStep(const StepShape& shape, const StepArrays& arrays,
                                           const DeviceKvCache& cache) {
  delta_is_part_ = false;
  current_x_ = x_.data();
  current_attention_ = Matrix(attention_, q_size_);
  if (place_.is_first_stage()) NIBBLE_RETURN_IF_ERROR(Embed(shape, arrays));
  int64_t num_rows = shape.num_rows;
  const int32_t* positions = arrays.expert_positions;
  for (int64_t l = 0; l < rank_config_.num_layers; ++l) {
    const kernels::cuda::KvCacheView layer_cache = cache.layer(l);
    NIBBLE_RETURN_IF_ERROR(
        ProjectQkv(layers_[static_cast<size_t>(l)], shape, arrays, layer_cache, l == 0));
    const bool is_last = place_.is_last_stage() && l + 1 == rank_config_.num_layers;
    // Beyond the last layer's keys and values, only the rows that are sampled matter.
    if (is_last && shape.num_samples == 0) return absl::OkStatus();
    NIBBLE_RETURN_IF_ERROR(Attend(l, layer_cache));
    if (is_last && shape.num_samples < shape.num_rows) {
      NIBBLE_RETURN_IF_ERROR(KeepRows(shape, arrays));
      num_rows = shape.num_samples;
      positions = arrays.kept_positions;
    }
    NIBBLE_RETURN_IF_ERROR(FeedForward(l, num_rows, positions));
  }
  return place_.is_last_stage() ? ComputeLogits(num_rows) : absl::OkStatus();
}

// A row is on the rank that has it; the others add zeros, which change no value.
absl::Status CudaDecoderModel::Embed(const StepShape& shape, const StepArrays& arrays) {
  const Range& ids = weights_.embedding.ids;
  NIBBLE_RETURN_IF_ERROR(Do(StepOp::kEmbed, [&] {
    return kernels::cuda::Embed({.num_tokens = shape.num_rows,
                                 .hidden = config_.hidden_size,
                                 .token_ids = arrays.token_ids,
                                 .table = embedding_.data(),
                                 .dtype = embedding_dtype_,
                                 .begin_id = ids.begin,
                                 .end_id = ids.end,
                                 .out = x_.data()},
                                stream_.get());
  }));
  if (place_.size == 1) return absl::OkStatus();
  return communicator_->AllReduce({.data = x_.data(),
                                   .dtype = DType::kF32,
                                   .num_rows = shape.num_rows,
                                   .row_size = config_.hidden_size,
                                   .exact = true},
                                  stream_.get());
}

absl::Status CudaDecoderModel::Normalize(const gpu::DeviceBuffer<float>& weight, int64_t num_rows,
                                         bool add_delta, const DeviceInput& out) {
  const kernels::cuda::RmsNormArgs norm = {
      .num_rows = num_rows,
      .hidden = config_.hidden_size,
      .x = current_x_,
      .x_stride = config_.hidden_size,
      .delta = add_delta ? Matrix(delta_, config_.hidden_size) : DeviceMatrix{},
      .weight = weight.data(),
      .epsilon = config_.rms_norm_eps,
      .out = out.output()};
  if (!add_delta || !delta_is_part_) {
    return Do(StepOp::kNorm, [&] { return kernels::cuda::RmsNorm(norm, stream_.get()); });
  }
  delta_is_part_ = false;
  return AllReduceNorm(communicator_.get(),
                       {.data = delta_.data(),
                        .dtype = activation_,
                        .num_rows = num_rows,
                        .row_size = config_.hidden_size},
                       norm, stream_.get());
}

absl::Status CudaDecoderModel::Multiply(StepOp op, const DeviceLinear& linear,
                                        const DeviceInput& input, int64_t num_rows,
                                        const DeviceMatrix& y) {
  return Do(op, [&] { return linear.Run(input, num_rows, y, gemm_, stream_.get()); });
}

// qkv_ from x_ and delta_, keys and values into the cache.
absl::Status CudaDecoderModel::ProjectQkv(const Layer& layer, const StepShape& shape,
                                          const StepArrays& arrays,
                                          const kernels::cuda::KvCacheView& cache, bool first) {
  const DeviceInput input = activations_.For(layer.qkv);
  const DeviceMatrix qkv = Matrix(qkv_, qkv_size_);
  NIBBLE_RETURN_IF_ERROR(Normalize(layer.input_norm, shape.num_rows, /*add_delta=*/!first, input));
  NIBBLE_RETURN_IF_ERROR(Multiply(StepOp::kQkv, layer.qkv, input, shape.num_rows, qkv));
  return Do(StepOp::kRopeKv, [&] {
    return kernels::cuda::RopeKvAppend(cache,
                                       {.num_tokens = shape.num_rows,
                                        .qkv = qkv,
                                        .num_heads = rank_config_.num_heads,
                                        .q_norm = layer.q_norm.data(),
                                        .k_norm = layer.k_norm.data(),
                                        .epsilon = config_.rms_norm_eps,
                                        .cos = rope_cos_.data(),
                                        .sin = rope_sin_.data(),
                                        .rotary_dim = config_.rope.rotary_dim,
                                        .positions = arrays.positions,
                                        .slot_mapping = arrays.slot_mapping},
                                       stream_.get());
  });
}

absl::Status CudaDecoderModel::Attend(int64_t layer_idx, const kernels::cuda::KvCacheView& cache) {
  return Do(StepOp::kAttention, [&] {
    return attention_op_->Run(
        cache,
        {.q = Matrix(qkv_, qkv_size_),
         .out = Matrix(attention_, q_size_),
         .scale = 1.0F / std::sqrt(static_cast<float>(config_.head_dim)),
         .sliding_window = rank_config_.sliding_window[static_cast<size_t>(layer_idx)]},
        stream_.get());
  });
}

// The residual stream and attention's output of the rows that are sampled.
absl::Status CudaDecoderModel::KeepRows(const StepShape& shape, const StepArrays& arrays) {
  const int64_t x_bytes = config_.hidden_size * static_cast<int64_t>(sizeof(float));
  NIBBLE_RETURN_IF_ERROR(Do(StepOp::kKeepRows, [&] {
    return kernels::cuda::GatherRows(x_.data(), arrays.kept_rows, shape.num_samples, x_bytes,
                                     kept_x_.data(), stream_.get());
  }));
  const DeviceMatrix attention = Matrix(kept_attention_, q_size_);
  const int64_t attention_bytes = attention.stride * static_cast<int64_t>(SizeOf(attention.dtype));
  NIBBLE_RETURN_IF_ERROR(Do(StepOp::kKeepRows, [&] {
    return kernels::cuda::GatherRows(attention_.data(), arrays.kept_rows, shape.num_samples,
                                     attention_bytes, kept_attention_.data(), stream_.get());
  }));
  current_x_ = kept_x_.data();
  current_attention_ = attention;
  return absl::OkStatus();
}

// x_ and delta_ from attention_: output projection, then dense layer or experts. Each half leaves
// its part of the sum over the ranks to the norm that follows.
absl::Status CudaDecoderModel::FeedForward(int64_t layer_idx, int64_t num_rows,
                                           const int32_t* positions) {
  const Layer& layer = layers_[static_cast<size_t>(layer_idx)];
  const DeviceMatrix delta = Matrix(delta_, config_.hidden_size);
  DeviceInput input = activations_.For(layer.o);
  const bool as_it_is = layer.o.forms().floats.value_or(activation_) == activation_;
  if (as_it_is) input.values = {};
  if (!as_it_is || layer.o.forms().int8) {
    NIBBLE_RETURN_IF_ERROR(Do(StepOp::kQuantize, [&] {
      return kernels::cuda::QuantizeRows(current_attention_, num_rows, q_size_, input.output(),
                                         nullptr, stream_.get());
    }));
  }
  if (as_it_is) input.values = current_attention_;
  NIBBLE_RETURN_IF_ERROR(Multiply(StepOp::kO, layer.o, input, num_rows, delta));
  delta_is_part_ = place_.size > 1;

  if (layer.has_experts) {
    NIBBLE_RETURN_IF_ERROR(Normalize(layer.post_attention_norm, num_rows, /*add_delta=*/true,
                                     moe_->InputOf(layer_idx)));
    NIBBLE_RETURN_IF_ERROR(Do(StepOp::kExperts, [&] {
      return moe_->Run(layer_idx, positions, num_rows, delta, gemm_, stream_.get());
    }));
  } else {
    NIBBLE_RETURN_IF_ERROR(FeedForwardDense(layer, num_rows));
  }
  delta_is_part_ = place_.size > 1;
  return absl::OkStatus();
}

absl::Status CudaDecoderModel::FeedForwardDense(const Layer& layer, int64_t num_rows) {
  DeviceInput input = activations_.For(layer.gate_up);
  const DeviceMatrix gate_up = Matrix(gate_up_, 2 * dense_intermediate_size_);
  NIBBLE_RETURN_IF_ERROR(Normalize(layer.post_attention_norm, num_rows, /*add_delta=*/true, input));
  NIBBLE_RETURN_IF_ERROR(Multiply(StepOp::kGateUp, layer.gate_up, input, num_rows, gate_up));

  input = activations_.For(layer.down);
  NIBBLE_RETURN_IF_ERROR(Do(StepOp::kSwiGlu, [&] {
    return kernels::cuda::SiluMul({.num_rows = num_rows,
                                   .intermediate = dense_intermediate_size_,
                                   .gate_up = gate_up,
                                   .out = input.output(),
                                   .workspace = silu_workspace_.data()},
                                  stream_.get());
  }));
  return Multiply(StepOp::kDown, layer.down, input, num_rows, Matrix(delta_, config_.hidden_size));
}

absl::Status CudaDecoderModel::ComputeLogits(int64_t num_rows) {
  const DeviceInput input = activations_.For(lm_head_);
  NIBBLE_RETURN_IF_ERROR(Normalize(final_norm_, num_rows, /*add_delta=*/true, input));
  NIBBLE_RETURN_IF_ERROR(
      Multiply(StepOp::kHead, lm_head_, input, num_rows,
               {.data = own_logits_.data(), .dtype = DType::kF32, .stride = logits_stride_}));
  return place_.size == 1 ? absl::OkStatus() : GatherLogits(num_rows);
}

}  // namespace nibble::engine
