// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A linear layer in device memory, and the activations it reads: engine/model/linear.h on a device.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "base/cuda/buffer.h"
#include "base/status.h"
#include "engine/model/linear.h"
#include "kernels/device/device_matrix.h"
#include "kernels/gemm/cuda/gemm.h"

namespace nibble::engine {

// Elements between rows that start on 16 bytes.
int64_t PaddedStride(int64_t columns, DType dtype);
// The first `columns` of `matrix` from column `first` on.
kernels::cuda::DeviceMatrix FromColumn(const kernels::cuda::DeviceMatrix& matrix, int64_t first);

// What a layer reads.
struct DeviceForms {
  bool int8 = false;
  std::optional<DType> floats;  // of this type
};

// Rows of activations in these forms: either may be null.
struct DeviceInput {
  kernels::cuda::DeviceMatrix values;
  kernels::QuantizedRows quantized;
  int8_t* reordered = nullptr;  // scratch like quantized.values

  kernels::cuda::RowOutput output() const { return {.values = values, .quantized = quantized}; }
};

// y = x * W^T + bias, of weights that a Linear owns. Immutable.
class DeviceLinear {
 public:
  DeviceLinear() = default;
  // `linear` outlives it. UNIMPLEMENTED, naming `name`, for parts that the device does not have
  // together. REQUIRES weights of the device's packer. Waits for `stream`.
  static absl::StatusOr<DeviceLinear> Create(const Linear& linear, std::string_view name,
                                             cudaStream_t stream);

  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  const DeviceForms& forms() const { return forms_; }
  bool reorders() const { return reorders_; }
  int64_t WorkspaceBytes(int64_t max_tokens, const gpu::DeviceCaps& caps, bool has_cublaslt) const;

  // y [num_rows, n]. `input` is in forms().
  absl::Status Run(const DeviceInput& input, int64_t num_rows, const kernels::cuda::DeviceMatrix& y,
                   const kernels::cuda::GemmContext& context, cudaStream_t stream) const;

 private:
  struct Part {
    const kernels::cuda::DeviceWeight* weight = nullptr;
    gpu::DeviceBuffer<int32_t> channel_order;  // empty: in order
  };
  std::vector<Part> parts_;
  gpu::DeviceBuffer<float> bias_;
  DeviceForms forms_;
  int64_t n_ = 0;
  int64_t k_ = 0;
  bool reorders_ = false;
};

// Memory for the input of one linear layer at a time.
class DeviceActivations {
 public:
  DeviceActivations() = default;
  // Room for `num_rows` rows of up to `max_k` elements, as floats of up to 4 bytes and as int8.
  static absl::StatusOr<DeviceActivations> Create(int64_t num_rows, int64_t max_k, bool reordered);
  static int64_t BytesPerRow(int64_t max_k, bool reordered);

  // Views of rows of k elements in the forms given.
  DeviceInput For(const DeviceForms& forms, int64_t k) const;
  DeviceInput For(const DeviceLinear& linear) const { return For(linear.forms(), linear.k()); }

 private:
  gpu::DeviceBuffer<uint8_t> values_;
  gpu::DeviceBuffer<int8_t> codes_;
  gpu::DeviceBuffer<int8_t> reordered_;
  gpu::DeviceBuffer<float> scales_;
  gpu::DeviceBuffer<int32_t> sums_;
};

}  // namespace nibble::engine
