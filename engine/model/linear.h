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
#include <span>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/thread_pool.h"
#include "kernels/gemm/gemm.h"
#include "kernels/quant/quantize_rows.h"

namespace nibble::engine {

// Rows of activations in the forms that a layer takes: `values` is null, or `quantized.values` is,
// or neither (a layer of float and int8 parts).
struct LinearInput {
  float* values = nullptr;  // [num_rows, stride]
  int64_t stride = 0;
  kernels::QuantizedRows quantized;
  int8_t* reordered = nullptr;  // scratch like quantized.values, for layers that reorder them
};

// y = x * W^T + bias. Immutable after loading.
class Linear {
 public:
  // Output channels side by side that share one packed weight. Checkpoints may quantize the
  // projections that are fused here in different ways.
  struct Part {
    std::unique_ptr<kernels::PackedWeight> weight;
    // Column c of an int8-input weight reads input channel channel_order[c]; empty: in order.
    std::vector<int32_t> channel_order;
  };

  Linear() = default;
  // `bias` is empty or has one float per output channel. REQUIRES: parts of one k.
  Linear(std::vector<Part> parts, std::vector<float> bias);

  int64_t n() const { return n_; }
  int64_t k() const { return parts_.front().weight->desc().k; }
  bool takes_int8() const { return takes_int8_; }
  bool takes_floats() const { return takes_floats_; }
  bool reorders() const { return reorders_; }
  int64_t size_bytes() const;
  // Side by side in the order of their output channels.
  std::span<const Part> parts() const { return parts_; }
  bool has_bias() const { return !bias_.empty(); }
  const std::vector<float>& bias() const { return bias_; }  // [n] or empty

  // y [num_rows, n], contiguous. `input` was made For() this layer.
  void Run(const LinearInput& input, int64_t num_rows, float* y, ThreadPool* pool) const;

 private:
  std::vector<Part> parts_;
  std::vector<float> bias_;
  int64_t n_ = 0;
  bool takes_int8_ = false;
  bool takes_floats_ = false;
  bool reorders_ = false;
};

// Memory for rows of int8 activations.
class QuantizedRowsBuffer {
 public:
  // Room for `num_rows` rows of up to `max_k` elements; what was in it is lost.
  void Allocate(int64_t num_rows, int64_t max_k);
  static int64_t BytesPerRow(int64_t max_k);

  // Rows of k elements that start on cache lines. Valid until the next Allocate().
  kernels::QuantizedRows For(int64_t k);

 private:
  AlignedBuffer<int8_t> codes_;  // [num_rows, max_k rounded up to 64]
  AlignedBuffer<float> scales_;  // [num_rows]
  AlignedBuffer<int32_t> sums_;  // [num_rows]
};

// The forms that activations have.
struct ActivationForms {
  bool floats = false;
  bool int8 = false;
  bool reordered = false;  // int8, and there are layers that reorder channels
};

// Memory for the input of one linear layer at a time, in any of the forms that it was made for.
class ActivationBuffer {
 public:
  // Room for `num_rows` rows of up to `max_k` elements; what was in it is lost.
  void Allocate(int64_t num_rows, int64_t max_k, const ActivationForms& forms);
  static int64_t BytesPerRow(int64_t max_k, const ActivationForms& forms);

  // A view in the form that `linear` takes. Valid until the next Allocate().
  LinearInput For(const Linear& linear);
  // The same for several layers that read one input of k elements.
  LinearInput For(int64_t k, const ActivationForms& forms);

 private:
  AlignedBuffer<float> values_;      // [num_rows, max_k]
  QuantizedRowsBuffer quantized_;    // [num_rows, max_k]
  AlignedBuffer<int8_t> reordered_;  // [num_rows, max_k rounded up to 64]
};

}  // namespace nibble::engine
