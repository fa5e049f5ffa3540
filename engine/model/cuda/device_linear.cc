// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/cuda/device_linear.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "engine/model/cuda/row_ops.h"

namespace nibble::engine {
namespace {

using kernels::cuda::DeviceMatrix;
using kernels::cuda::DeviceWeight;

constexpr int64_t kRowAlignment = 16;  // bytes

}  // namespace

int64_t PaddedStride(int64_t columns, DType dtype) {
  const int64_t elements = kRowAlignment / static_cast<int64_t>(SizeOf(dtype));
  return (columns + elements - 1) / elements * elements;
}

DeviceMatrix FromColumn(const DeviceMatrix& matrix, int64_t first) {
  DeviceMatrix from = matrix;
  from.data =
      static_cast<uint8_t*>(matrix.data) + first * static_cast<int64_t>(SizeOf(matrix.dtype));
  return from;
}

absl::StatusOr<DeviceLinear> DeviceLinear::Create(const Linear& linear, std::string_view name,
                                                  cudaStream_t stream) {
  DeviceLinear device;
  device.k_ = linear.k();
  for (const Linear::Part& source : linear.parts()) {
    Part part{.weight = dynamic_cast<const DeviceWeight*>(source.weight.get()),
              .channel_order = {}};
    NIBBLE_CHECK(part.weight != nullptr);
    const kernels::GemmDesc& desc = part.weight->desc();
    // What comes after it starts on 16 bytes of a row of 2-byte elements.
    if (device.n_ % (kRowAlignment / 2) != 0) {
      return Unimplemented(
          "{}: {} output channels lie before a part of another form: the CUDA engine wants a "
          "multiple of 8",
          name, device.n_);
    }
    device.n_ += desc.n;
    if (kernels::TakesInt8(desc.format)) {
      device.forms_.int8 = true;
    } else if (device.forms_.floats.value_or(desc.storage) != desc.storage) {
      return Unimplemented("{}: parts of {} and {}: the CUDA engine wants one type", name,
                           ToString(*device.forms_.floats), ToString(desc.storage));
    } else {
      device.forms_.floats = desc.storage;
    }
    if (!source.channel_order.empty()) {
      device.reorders_ = true;
      NIBBLE_ASSIGN_OR_RETURN(part.channel_order, gpu::Upload(source.channel_order, stream));
    }
    device.parts_.push_back(std::move(part));
  }
  if (linear.has_bias()) {
    NIBBLE_ASSIGN_OR_RETURN(device.bias_, gpu::Upload(linear.bias(), stream));
  }
  return device;
}

int64_t DeviceLinear::WorkspaceBytes(int64_t max_tokens, const gpu::DeviceCaps& caps,
                                     bool has_cublaslt) const {
  int64_t bytes = 0;
  for (const Part& part : parts_) {
    bytes = std::max(
        bytes, kernels::cuda::WorkspaceBytes(part.weight->desc(), max_tokens, caps, has_cublaslt));
  }
  return bytes;
}

absl::Status DeviceLinear::Run(const DeviceInput& input, int64_t num_rows, const DeviceMatrix& y,
                               const kernels::cuda::GemmContext& context,
                               cudaStream_t stream) const {
  int64_t column = 0;
  for (const Part& part : parts_) {
    kernels::QuantizedRows quantized = input.quantized;
    if (part.channel_order.size() > 0) {
      NIBBLE_RETURN_IF_ERROR(kernels::cuda::ReorderColumns({.num_rows = num_rows,
                                                            .k = k_,
                                                            .from = quantized.values,
                                                            .stride = quantized.stride,
                                                            .order = part.channel_order.data(),
                                                            .to = input.reordered},
                                                           stream));
      quantized.values = input.reordered;
    }
    NIBBLE_RETURN_IF_ERROR(
        kernels::cuda::Run(*part.weight,
                           {.m = num_rows,
                            .a = input.values,
                            .a8 = quantized,
                            .bias = bias_.size() == 0 ? nullptr : bias_.data() + column,
                            .d = FromColumn(y, column)},
                           context, stream));
    column += part.weight->desc().n;
  }
  return absl::OkStatus();
}

absl::StatusOr<DeviceActivations> DeviceActivations::Create(int64_t num_rows, int64_t max_k,
                                                            bool reordered) {
  DeviceActivations memory;
  const auto rows = static_cast<size_t>(num_rows);
  const auto codes = rows * static_cast<size_t>(PaddedStride(max_k, DType::kI8));
  NIBBLE_ASSIGN_OR_RETURN(
      memory.values_,
      gpu::DeviceBuffer<uint8_t>::Create(
          rows * static_cast<size_t>(PaddedStride(max_k, DType::kF32)) * sizeof(float)));
  NIBBLE_ASSIGN_OR_RETURN(memory.codes_, gpu::DeviceBuffer<int8_t>::Create(codes));
  NIBBLE_ASSIGN_OR_RETURN(memory.scales_, gpu::DeviceBuffer<float>::Create(rows));
  NIBBLE_ASSIGN_OR_RETURN(memory.sums_, gpu::DeviceBuffer<int32_t>::Create(rows));
  if (reordered) {
    NIBBLE_ASSIGN_OR_RETURN(memory.reordered_, gpu::DeviceBuffer<int8_t>::Create(codes));
  }
  return memory;
}

int64_t DeviceActivations::BytesPerRow(int64_t max_k, bool reordered) {
  return PaddedStride(max_k, DType::kF32) * 4 +
         PaddedStride(max_k, DType::kI8) * (reordered ? 2 : 1) + 8;
}

DeviceInput DeviceActivations::For(const DeviceForms& forms, int64_t k) const {
  DeviceInput input;
  if (forms.floats.has_value()) {
    input.values = {
        .data = values_.data(), .dtype = *forms.floats, .stride = PaddedStride(k, *forms.floats)};
  }
  if (forms.int8) {
    input.quantized = {.values = codes_.data(),
                       .scales = scales_.data(),
                       .sums = sums_.data(),
                       .stride = PaddedStride(k, DType::kI8)};
  }
  input.reordered = reordered_.data();
  return input;
}

}  // namespace nibble::engine
