// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/cuda/launch.h"
#include "base/cuda/shared_memory.cuh"
#include "kernels/quant/cuda/quantize_rows.h"
#include "kernels/quant/cuda/row_plan.h"
#include "kernels/quant/cuda/write_row.cuh"

namespace nibble::kernels::cuda {
namespace {

constexpr int64_t kMaxColumns = int64_t{1} << 24;  // sums of codes stay within int32

template <int kHeld, typename T>
__global__ __launch_bounds__(kMaxRowThreads) void QuantizeRowsKernel(DeviceMatrix x, int num_chunks,
                                                                     RowOutput out,
                                                                     const int32_t* valid_rows) {
  const int64_t row = blockIdx.x;
  if (valid_rows != nullptr && row >= *valid_rows) return;
  const T* const from = static_cast<const T*>(x.data) + row * x.stride;
  WriteRow<kHeld>(out, row, num_chunks, gpu::SharedAs<RowScratch>(),
                  [from](int, int chunk) { return Load8(from + chunk * kElements); });
}

template <typename T>
absl::Status LaunchFor(const DeviceMatrix& x, int64_t num_rows, int64_t k, const RowOutput& out,
                       const int32_t* valid_rows, cudaStream_t stream) {
  const RowPlan plan = PlanRow(k);
  return WithHeld(plan.held, [&](auto held) {
    return gpu::Launch(QuantizeRowsKernel<decltype(held)::value, T>,
                       {.grid = {static_cast<unsigned>(num_rows)},
                        .block = {plan.threads},
                        .shared_bytes = sizeof(RowScratch),
                        .stream = stream},
                       x, k / kElements, out, valid_rows);
  });
}

}  // namespace

absl::Status QuantizeRows(const DeviceMatrix& x, int64_t num_rows, int64_t k, const RowOutput& out,
                          const int32_t* valid_rows, cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(CheckColumns("k", k, kMaxColumns));
  NIBBLE_RETURN_IF_ERROR(CheckMatrix("x", x, num_rows, k));
  NIBBLE_RETURN_IF_ERROR(CheckOutput(out, num_rows, k));
  switch (x.dtype) {
    case DType::kBf16:
      return LaunchFor<gpu::Bf16>(x, num_rows, k, out, valid_rows, stream);
    case DType::kF16:
      return LaunchFor<gpu::Half>(x, num_rows, k, out, valid_rows, stream);
    default:
      return LaunchFor<float>(x, num_rows, k, out, valid_rows, stream);
  }
}

}  // namespace nibble::kernels::cuda
