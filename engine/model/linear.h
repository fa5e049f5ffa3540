// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A linear layer, and the activations it reads. Whether these are float or int8 is the layer's
// business; a model says which layer comes next and lets the op before it write what that layer
// takes:
//
//   const LinearInput input = activations.For(layer.qkv);
//   RmsNorm({..., .y = input.values, .y_stride = input.stride, .y8 = input.quantized}, isa, pool);
//   layer.qkv.Run(input, num_rows, qkv, pool);
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/thread_pool.h"
#include "kernels/gemm/gemm.h"
#include "kernels/quant/quantize_rows.h"

namespace nibble::engine {

// Rows of activations in one of two forms: `values` is null, or `quantized.values` is.
struct LinearInput {
  float* values = nullptr;  // [num_rows, stride]
  int64_t stride = 0;
  kernels::QuantizedRows quantized;
};

// y = x * W^T + bias. Immutable after loading.
class Linear {
 public:
  Linear() = default;
  // `bias` is empty or has one float per output channel.
  Linear(std::unique_ptr<kernels::PackedWeight> weight, std::vector<float> bias);

  int64_t n() const { return weight_->desc().n; }
  int64_t k() const { return weight_->desc().k; }
  bool takes_int8() const { return weight_->desc().format == kernels::WeightFormat::kW4A8; }
  const kernels::PackedWeight& weight() const { return *weight_; }
  int64_t size_bytes() const;

  // y [num_rows, n], contiguous. `input` was made For() this layer.
  void Run(const LinearInput& input, int64_t num_rows, float* y, ThreadPool* pool) const;

 private:
  std::unique_ptr<kernels::PackedWeight> weight_;
  std::vector<float> bias_;
};

// Memory for the input of one linear layer at a time, in either form.
class ActivationBuffer {
 public:
  // Room for `num_rows` rows of up to `max_k` elements; what was in it is lost.
  void Allocate(int64_t num_rows, int64_t max_k);
  static int64_t BytesPerRow(int64_t max_k);

  // A view in the form that `linear` takes. Valid until the next Allocate().
  LinearInput For(const Linear& linear);

 private:
  AlignedBuffer<float> values_;  // [num_rows, max_k]
  AlignedBuffer<int8_t> codes_;  // [num_rows, max_k rounded up to 64]
  AlignedBuffer<float> scales_;  // [num_rows]
  AlignedBuffer<int32_t> sums_;  // [num_rows]
};

}  // namespace nibble::engine
