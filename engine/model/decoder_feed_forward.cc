// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The second half of a layer: output projection, and a dense feed-forward network or experts.

#include "engine/model/decoder.h"
#include "kernels/activation/silu_mul.h"
#include "kernels/quant/quantize_rows.h"

namespace nibble::engine {

absl::Status DecoderModel::FeedForward(int64_t layer_idx, std::span<const int32_t> positions,
                                       ThreadPool* pool) {
  const DecoderLayer& layer = weights_.layers[static_cast<size_t>(layer_idx)];
  const auto num_rows = static_cast<int64_t>(positions.size());
  LinearInput input = activations_.For(layer.o);
  if (layer.o.takes_int8()) {
    kernels::QuantizeRows(attention_.data(), q_size_, num_rows, q_size_, input.quantized, isa_,
                          pool);
  } else {
    input = {.values = attention_.data(), .stride = q_size_};
  }
  layer.o.Run(input, num_rows, delta_.data(), pool);
  NIBBLE_RETURN_IF_ERROR(SumDelta(num_rows, pool));

  if (layer.moe.has_value()) {
    input = activations_.For(config_.hidden_size, layer.moe->input_forms());
    Normalize(layer.post_attention_norm, num_rows, /*add_delta=*/true, input, pool);
    moe_->Run(layer_idx, input, positions.data(), num_rows, delta_.data(), pool);
  } else {
    FeedForwardDense(layer, num_rows, pool);
  }
  return SumDelta(num_rows, pool);
}

void DecoderModel::FeedForwardDense(const DecoderLayer& layer, int64_t num_rows, ThreadPool* pool) {
  LinearInput input = activations_.For(layer.gate_up);
  Normalize(layer.post_attention_norm, num_rows, /*add_delta=*/true, input, pool);
  layer.gate_up.Run(input, num_rows, gate_up_.data(), pool);

  input = activations_.For(layer.down);
  kernels::SiluMul({.num_rows = num_rows,
                    .intermediate = dense_intermediate_size_,
                    .gate_up = gate_up_.data(),
                    .gate_up_stride = 2 * dense_intermediate_size_,
                    .y = input.values,
                    .y_stride = input.stride,
                    .y8 = input.quantized},
                   isa_, pool);
  layer.down.Run(input, num_rows, delta_.data(), pool);
}

}  // namespace nibble::engine
