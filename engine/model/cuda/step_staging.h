// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A step plan's arrays on their way to the device: written side by side into pinned memory and
// moved by one copy.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/buffer.h"
#include "base/status.h"
#include "engine/scheduler/step_plan.h"
#include "kernels/sampling/cuda/sample.h"

namespace nibble::engine {

// Device memory.
struct StepArrays {
  const int32_t* token_ids = nullptr;     // [num_rows]
  const int32_t* positions = nullptr;     // [num_rows]
  const int32_t* slot_mapping = nullptr;  // [num_rows]; -1: padding
  // The rows that go on behind the last attention: [num_samples] rows of the step, and their
  // positions (-1: padding).
  const int32_t* kept_rows = nullptr;
  const int32_t* kept_positions = nullptr;
  // Of all rows; -1: padding.
  const int32_t* expert_positions = nullptr;              // [num_rows]
  const kernels::cuda::SampleParams* sampling = nullptr;  // [num_samples]
};

class StepStaging {
 public:
  StepStaging() = default;
  static absl::StatusOr<StepStaging> Create(int64_t max_rows, int64_t max_samples);
  static int64_t BytesFor(int64_t max_rows, int64_t max_samples);

  // Enqueues one copy. REQUIRES that the stream has passed the one before it, which reads the same
  // pinned memory. Rows beyond the plan's tokens are padding, and each of them a sample. Where the
  // arrays lie depends on num_rows and num_samples alone: captured graphs go on reading there.
  // REQUIRES num_rows >= plan.num_tokens(), within the sizes created for.
  absl::StatusOr<StepArrays> Upload(const StepPlan& plan, int64_t num_rows, int64_t num_samples,
                                    cudaStream_t stream);

 private:
  gpu::PinnedBuffer<uint8_t> host_;
  gpu::DeviceBuffer<uint8_t> device_;
};

// Whether the device chooses the row's token: it asks for nothing but temperature, top-k, top-p and
// min-p.
bool IsSampledOnDevice(const SamplingRow& row);

}  // namespace nibble::engine
