// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/cuda/allreduce_memory.h"

#include <algorithm>
#include <vector>

#include "bench/cuda/random_on_device.h"

namespace nibble::bench {

absl::Status AllReduceMemory::Allocate(const CudaAllReduceBenchOptions& options, int rank,
                                       int64_t max_values, int64_t hold_bytes,
                                       cudaStream_t stream) {
  const auto count = static_cast<size_t>(max_values);
  const auto rows = static_cast<size_t>(
      std::max<int64_t>(max_values / options.row_size, 1));  // short messages are one row
  const auto seed = static_cast<uint32_t>(rank + 1);
  NIBBLE_ASSIGN_OR_RETURN(input, RandomOnDevice(RandomKind::kBf16, max_values, seed, stream));
  NIBBLE_ASSIGN_OR_RETURN(delta, gpu::DeviceBuffer<uint16_t>::Create(count));
  NIBBLE_ASSIGN_OR_RETURN(residual, gpu::DeviceBuffer<float>::Create(count));
  NIBBLE_RETURN_IF_ERROR(gpu::ZeroDevice(residual.data(), residual.size_bytes(), stream));
  const std::vector<float> ones(static_cast<size_t>(options.row_size), 1.0F);
  NIBBLE_ASSIGN_OR_RETURN(weight, gpu::Upload(ones, stream));
  NIBBLE_ASSIGN_OR_RETURN(codes, gpu::DeviceBuffer<int8_t>::Create(count));
  NIBBLE_ASSIGN_OR_RETURN(scales, gpu::DeviceBuffer<float>::Create(rows));
  NIBBLE_ASSIGN_OR_RETURN(sums, gpu::DeviceBuffer<int32_t>::Create(rows));
  NIBBLE_ASSIGN_OR_RETURN(hold,
                          gpu::DeviceBuffer<uint8_t>::Create(static_cast<size_t>(hold_bytes)));
  NIBBLE_RETURN_IF_ERROR(gpu::ZeroDevice(hold.data(), hold.size_bytes(), stream));
  NIBBLE_ASSIGN_OR_RETURN(sink, gpu::DeviceBuffer<uint32_t>::Create(1));
  return absl::OkStatus();
}

AllReduceRows AllReduceMemory::Rows(int64_t message_bytes, int64_t max_row_size) const {
  const int64_t values = message_bytes / 2;
  const int64_t row_size = std::min(max_row_size, values / 8 * 8);
  const int64_t num_rows = values / row_size;
  return {.sum = {.data = delta.data(),
                  .dtype = DType::kBf16,
                  .num_rows = num_rows,
                  .row_size = row_size},
          .norm = {.num_rows = num_rows,
                   .hidden = row_size,
                   .x = residual.data(),
                   .x_stride = row_size,
                   .delta = {.data = delta.data(), .dtype = DType::kBf16, .stride = row_size},
                   .weight = weight.data(),
                   .out = {.values = {},
                           .quantized = {.values = codes.data(),
                                         .scales = scales.data(),
                                         .sums = sums.data(),
                                         .stride = row_size}}}};
}

}  // namespace nibble::bench
