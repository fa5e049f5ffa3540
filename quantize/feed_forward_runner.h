// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The feed-forward network of a layer, or of one expert, with the kernels that serve models.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "kernels/gemm/gemm.h"
#include "quantize/methods/calibration_data.h"
#include "quantize/methods/equalization.h"

namespace nibble::quantize {

// Rows [num_rows, k] that the linear layers of `site` are about to read, as floats before any
// quantization.
using SiteObserver =
    std::function<absl::Status(Site site, const float* rows, int64_t num_rows, int64_t k)>;

// Sends rows through int8 and back, token by token, as the engine's linear layers read them.
class Int8Rounding {
 public:
  void Round(float* rows, int64_t num_rows, int64_t k, Isa isa, ThreadPool* pool);

 private:
  AlignedBuffer<int8_t> codes_;  // [num_rows, k], of the largest rows yet
  AlignedBuffer<float> scales_;  // [num_rows]
  AlignedBuffer<int32_t> sums_;  // [num_rows]
};

// A matrix held in float32, whatever it was rounded to.
class DenseLayer {
 public:
  DenseLayer() = default;
  // RESOURCE_EXHAUSTED, naming the matrix, when memory runs out.
  static absl::StatusOr<DenseLayer> Create(const Matrix& matrix, Isa isa, ThreadPool* pool);

  int64_t n() const { return weight_->desc().n; }
  int64_t k() const { return weight_->desc().k; }
  // out [num_rows, out_stride] from input [num_rows, k].
  void Multiply(const float* input, int64_t num_rows, float* out, int64_t out_stride,
                ThreadPool* pool) const;

 private:
  std::unique_ptr<kernels::PackedWeight> weight_;
  std::vector<float> bias_;
};

// What lies between the matrices of one network at a time.
struct FeedForwardWorkspace {
  AlignedBuffer<float> gate_up;  // [num_rows, 2 * intermediate], of the largest run yet
  AlignedBuffer<float> hidden;   // [num_rows, intermediate]
  Int8Rounding rounding;
};

// A row's output does not depend on the other rows, nor on the number of threads.
class FeedForwardRunner {
 public:
  FeedForwardRunner() = default;
  // With 8 activation bits the inputs of all three matrices go through Int8Rounding.
  static absl::StatusOr<FeedForwardRunner> Create(const FeedForward& weights, int activation_bits,
                                                  Isa isa, ThreadPool* pool);

  // out [num_rows, hidden] = down(silu(gate(x)) * up(x)) of x = input [num_rows, hidden], which is
  // rounded in place. Null `out`: ends when `observer` (may be null) has seen the input of down.
  absl::Status Run(float* input, int64_t num_rows, const SiteObserver& observer, float* out,
                   FeedForwardWorkspace* workspace, ThreadPool* pool) const;

 private:
  int activation_bits_ = 16;
  Isa isa_ = Isa::kRef;
  DenseLayer gate_, up_, down_;
};

}  // namespace nibble::quantize
