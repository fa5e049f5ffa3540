// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/quant/quantize_rows.h"

#include "kernels/device/pick_by_isa.h"
#include "kernels/quant/quantize_rows_kernels.h"

namespace nibble::kernels {
void QuantizeRowRange(const float* x, int64_t x_stride, int64_t num_rows, int64_t k,
                      const QuantizedRows& out, Isa isa) {
  auto* const quantize_row =
      PickByIsa(isa, ref::QuantizeRow, avx2::QuantizeRow, avx512vnni::QuantizeRow);
  for (int64_t row = 0; row < num_rows; ++row) {
    const QuantizedRow result = quantize_row(x + row * x_stride, k, out.values + row * out.stride);
    out.scales[row] = result.scale;
    out.sums[row] = result.sum;
  }
}

void QuantizeRows(const float* x, int64_t x_stride, int64_t num_rows, int64_t k,
                  const QuantizedRows& out, Isa isa, ThreadPool* pool) {
  // Some 16 KiB of input per piece: less does not pay for waking a thread.
  const int64_t grain = k < 4096 ? 4096 / (k + 1) + 1 : 1;
  pool->ParallelFor(num_rows, grain, [&](int64_t begin, int64_t end) {
    QuantizeRowRange(x + begin * x_stride, x_stride, end - begin, k,
                     {.values = out.values + begin * out.stride,
                      .scales = out.scales + begin,
                      .sums = out.sums + begin,
                      .stride = out.stride},
                     isa);
  });
}

}  // namespace nibble::kernels
