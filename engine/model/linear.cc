// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/linear.h"

#include <utility>

#include "base/check.h"

namespace nibble::engine {
namespace {

// Rows of int8 start on cache lines.
int64_t PaddedColumns(int64_t k) { return (k + 63) / 64 * 64; }

}  // namespace

Linear::Linear(std::unique_ptr<kernels::PackedWeight> weight, std::vector<float> bias)
    : weight_(std::move(weight)), bias_(std::move(bias)) {
  if (!bias_.empty()) NIBBLE_CHECK_EQ(static_cast<int64_t>(bias_.size()), n());
}

int64_t Linear::size_bytes() const {
  return static_cast<int64_t>(weight_->size_bytes() + bias_.size() * sizeof(float));
}

void Linear::Run(const LinearInput& input, int64_t num_rows, float* y, ThreadPool* pool) const {
  kernels::Run(*weight_,
               {.m = num_rows,
                .a = input.values,
                .a_stride = input.stride,
                .a8 = input.quantized,
                .bias = bias_.empty() ? nullptr : bias_.data(),
                .d = y,
                .d_stride = n()},
               pool);
}

void ActivationBuffer::Allocate(int64_t num_rows, int64_t max_k) {
  const auto rows = static_cast<size_t>(num_rows);
  values_ = AlignedBuffer<float>::Zeroed(rows * static_cast<size_t>(max_k));
  codes_ = AlignedBuffer<int8_t>::Zeroed(rows * static_cast<size_t>(PaddedColumns(max_k)));
  scales_ = AlignedBuffer<float>::Zeroed(rows);
  sums_ = AlignedBuffer<int32_t>::Zeroed(rows);
}

int64_t ActivationBuffer::BytesPerRow(int64_t max_k) {
  return max_k * 4 + PaddedColumns(max_k) + 8;
}

LinearInput ActivationBuffer::For(const Linear& linear) {
  if (!linear.takes_int8()) return {.values = values_.data(), .stride = linear.k()};
  return {.quantized = {.values = codes_.data(),
                        .scales = scales_.data(),
                        .sums = sums_.data(),
                        .stride = PaddedColumns(linear.k())}};
}

}  // namespace nibble::engine
