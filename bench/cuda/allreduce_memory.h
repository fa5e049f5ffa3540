// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a rank of `nibble bench allreduce --device cuda` sums and norms.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/buffer.h"
#include "base/status.h"
#include "bench/cuda/allreduce_subject.h"
#include "bench/cuda_allreduce_bench.h"

namespace nibble::bench {

// Device memory of a rank, for messages of any size of the benchmark; freed when all are through.
struct AllReduceMemory {
  gpu::DeviceBuffer<uint16_t> input;  // bf16
  gpu::DeviceBuffer<uint16_t> delta;  // what is summed
  gpu::DeviceBuffer<float> residual;
  gpu::DeviceBuffer<float> weight;
  gpu::DeviceBuffer<int8_t> codes;
  gpu::DeviceBuffer<float> scales;
  gpu::DeviceBuffer<int32_t> sums;
  gpu::DeviceBuffer<uint8_t> hold;  // read to keep a stream busy
  gpu::DeviceBuffer<uint32_t> sink;

  // Enqueues what it is filled with, too.
  absl::Status Allocate(const CudaAllReduceBenchOptions& options, int rank, int64_t max_values,
                        int64_t hold_bytes, cudaStream_t stream);

  // Of a message; what is shorter than a row is one.
  AllReduceRows Rows(int64_t message_bytes, int64_t max_row_size) const;
};

}  // namespace nibble::bench
