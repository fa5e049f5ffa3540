// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/feed_forward_runner.h"

#include <utility>

#include "kernels/activation/silu_mul.h"
#include "kernels/quant/quantize_rows.h"

namespace nibble::quantize {

void Int8Rounding::Round(float* rows, int64_t num_rows, int64_t k, Isa isa, ThreadPool* pool) {
  if (codes_.size() < static_cast<size_t>(num_rows * k)) {
    codes_ = AlignedBuffer<int8_t>(static_cast<size_t>(num_rows * k));
  }
  if (scales_.size() < static_cast<size_t>(num_rows)) {
    scales_ = AlignedBuffer<float>(static_cast<size_t>(num_rows));
    sums_ = AlignedBuffer<int32_t>(static_cast<size_t>(num_rows));
  }
  const kernels::QuantizedRows quantized = {
      .values = codes_.data(), .scales = scales_.data(), .sums = sums_.data(), .stride = k};
  kernels::QuantizeRows(rows, k, num_rows, k, quantized, isa, pool);
  pool->ParallelFor(num_rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float scale = quantized.scales[row];
      const int8_t* const codes = quantized.values + row * k;
      float* const out = rows + row * k;
      for (int64_t i = 0; i < k; ++i) out[i] = scale * static_cast<float>(codes[i]);
    }
  });
}

absl::StatusOr<DenseLayer> DenseLayer::Create(const Matrix& matrix, Isa isa, ThreadPool* pool) {
  auto packed = kernels::PackDense(matrix.weight.data(), DType::kF32, matrix.n, matrix.k,
                                   DType::kF32, isa, pool);
  if (!packed.ok()) return Annotate(packed.status(), matrix.name);
  DenseLayer layer;
  layer.weight_ = std::move(packed).value();
  layer.bias_ = matrix.bias;
  return layer;
}

void DenseLayer::Multiply(const float* input, int64_t num_rows, float* out, int64_t out_stride,
                          ThreadPool* pool) const {
  kernels::Run(*weight_,
               {.m = num_rows,
                .a = input,
                .a_stride = k(),
                .bias = bias_.empty() ? nullptr : bias_.data(),
                .d = out,
                .d_stride = out_stride},
               pool);
}

absl::StatusOr<FeedForwardRunner> FeedForwardRunner::Create(const FeedForward& weights,
                                                            int activation_bits, Isa isa,
                                                            ThreadPool* pool) {
  FeedForwardRunner runner;
  runner.activation_bits_ = activation_bits;
  runner.isa_ = isa;
  NIBBLE_ASSIGN_OR_RETURN(runner.gate_, DenseLayer::Create(weights.gate, isa, pool));
  NIBBLE_ASSIGN_OR_RETURN(runner.up_, DenseLayer::Create(weights.up, isa, pool));
  NIBBLE_ASSIGN_OR_RETURN(runner.down_, DenseLayer::Create(weights.down, isa, pool));
  return runner;
}

absl::Status FeedForwardRunner::Run(float* input, int64_t num_rows, const SiteObserver& observer,
                                    float* out, FeedForwardWorkspace* workspace,
                                    ThreadPool* pool) const {
  const int64_t ffn = gate_.n();
  const auto size = static_cast<size_t>(num_rows * ffn);
  if (workspace->hidden.size() < size) {
    workspace->gate_up = AlignedBuffer<float>(2 * size);
    workspace->hidden = AlignedBuffer<float>(size);
  }
  float* const gate_up = workspace->gate_up.data();
  float* const hidden = workspace->hidden.data();
  if (observer) NIBBLE_RETURN_IF_ERROR(observer(Site::kGateUp, input, num_rows, gate_.k()));
  if (activation_bits_ == 8) workspace->rounding.Round(input, num_rows, gate_.k(), isa_, pool);
  gate_.Multiply(input, num_rows, gate_up, 2 * ffn, pool);
  up_.Multiply(input, num_rows, gate_up + ffn, 2 * ffn, pool);
  kernels::SiluMul({.num_rows = num_rows,
                    .intermediate = ffn,
                    .gate_up = gate_up,
                    .gate_up_stride = 2 * ffn,
                    .y = hidden,
                    .y_stride = ffn},
                   isa_, pool);
  if (observer) NIBBLE_RETURN_IF_ERROR(observer(Site::kDown, hidden, num_rows, ffn));
  if (out == nullptr) return absl::OkStatus();
  if (activation_bits_ == 8) workspace->rounding.Round(hidden, num_rows, ffn, isa_, pool);
  down_.Multiply(hidden, num_rows, out, down_.n(), pool);
  return absl::OkStatus();
}

}  // namespace nibble::quantize
