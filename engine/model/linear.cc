// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/linear.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace nibble::engine {
namespace {

// Rows of int8 start on cache lines.
int64_t PaddedColumns(int64_t k) { return (k + 63) / 64 * 64; }

// out[row, c] = in[row, order[c]]. Scales and sums of rows do not depend on the order.
void Reorder(const kernels::QuantizedRows& in, const std::vector<int32_t>& order, int64_t num_rows,
             int8_t* out, ThreadPool* pool) {
  constexpr int64_t kColumnsPerPiece = 4096;  // one row's columns are shared among threads too
  const auto k = static_cast<int64_t>(order.size());
  const int64_t pieces = (k + kColumnsPerPiece - 1) / kColumnsPerPiece;
  pool->ParallelFor(num_rows * pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int8_t* from = in.values + piece / pieces * in.stride;
      int8_t* to = out + piece / pieces * in.stride;
      const int64_t first = piece % pieces * kColumnsPerPiece;
      const int64_t last = std::min(first + kColumnsPerPiece, k);
      for (int64_t c = first; c < last; ++c) to[c] = from[order[static_cast<size_t>(c)]];
    }
  });
}

}  // namespace

Linear::Linear(std::vector<Part> parts, std::vector<float> bias)
    : parts_(std::move(parts)), bias_(std::move(bias)) {
  NIBBLE_CHECK(!parts_.empty());
  for (const Part& part : parts_) {
    const bool int8 = kernels::TakesInt8(part.weight->desc().format);
    NIBBLE_CHECK_EQ(part.weight->desc().k, k());
    NIBBLE_CHECK(part.channel_order.empty() ||
                 (int8 && static_cast<int64_t>(part.channel_order.size()) == k()));
    n_ += part.weight->desc().n;
    takes_int8_ = takes_int8_ || int8;
    takes_floats_ = takes_floats_ || !int8;
    reorders_ = reorders_ || !part.channel_order.empty();
  }
  if (!bias_.empty()) NIBBLE_CHECK_EQ(static_cast<int64_t>(bias_.size()), n_);
}

int64_t Linear::size_bytes() const {
  size_t bytes = bias_.size() * sizeof(float);
  for (const Part& part : parts_) {
    bytes += part.weight->size_bytes() + part.channel_order.size() * sizeof(int32_t);
  }
  return static_cast<int64_t>(bytes);
}

void Linear::Run(const LinearInput& input, int64_t num_rows, float* y, ThreadPool* pool) const {
  int64_t column = 0;
  for (const Part& part : parts_) {
    kernels::QuantizedRows quantized = input.quantized;
    if (!part.channel_order.empty()) {
      Reorder(input.quantized, part.channel_order, num_rows, input.reordered, pool);
      quantized.values = input.reordered;
    }
    kernels::Run(*part.weight,
                 {.m = num_rows,
                  .a = input.values,
                  .a_stride = input.stride,
                  .a8 = quantized,
                  .bias = bias_.empty() ? nullptr : bias_.data() + column,
                  .d = y + column,
                  .d_stride = n_},
                 pool);
    column += part.weight->desc().n;
  }
}

void QuantizedRowsBuffer::Allocate(int64_t num_rows, int64_t max_k) {
  const auto rows = static_cast<size_t>(num_rows);
  codes_ = AlignedBuffer<int8_t>::Zeroed(rows * static_cast<size_t>(PaddedColumns(max_k)));
  scales_ = AlignedBuffer<float>::Zeroed(rows);
  sums_ = AlignedBuffer<int32_t>::Zeroed(rows);
}

int64_t QuantizedRowsBuffer::BytesPerRow(int64_t max_k) { return PaddedColumns(max_k) + 8; }

kernels::QuantizedRows QuantizedRowsBuffer::For(int64_t k) {
  return {.values = codes_.data(),
          .scales = scales_.data(),
          .sums = sums_.data(),
          .stride = PaddedColumns(k)};
}

void ActivationBuffer::Allocate(int64_t num_rows, int64_t max_k, const ActivationForms& forms) {
  const auto rows = static_cast<size_t>(num_rows);
  const size_t num_codes = rows * static_cast<size_t>(PaddedColumns(max_k));
  values_ = AlignedBuffer<float>::Zeroed(forms.floats ? rows * static_cast<size_t>(max_k) : 0);
  quantized_.Allocate(forms.int8 ? num_rows : 0, max_k);
  reordered_ = AlignedBuffer<int8_t>::Zeroed(forms.reordered ? num_codes : 0);
}

int64_t ActivationBuffer::BytesPerRow(int64_t max_k, const ActivationForms& forms) {
  return (forms.floats ? max_k * 4 : 0) +
         (forms.int8 ? QuantizedRowsBuffer::BytesPerRow(max_k) : 0) +
         (forms.reordered ? PaddedColumns(max_k) : 0);
}

LinearInput ActivationBuffer::For(const Linear& linear) {
  return For(linear.k(), {.floats = linear.takes_floats(),
                          .int8 = linear.takes_int8(),
                          .reordered = linear.reorders()});
}

LinearInput ActivationBuffer::For(int64_t k, const ActivationForms& forms) {
  LinearInput input;
  if (forms.floats) {
    input.values = values_.data();
    input.stride = k;
  }
  if (forms.int8) input.quantized = quantized_.For(k);
  if (forms.reordered) input.reordered = reordered_.data();
  return input;
}

}  // namespace nibble::engine
