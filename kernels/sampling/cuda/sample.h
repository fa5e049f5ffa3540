// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Choosing tokens from logits on a device, for rows that ask for nothing but temperature, top-k,
// top-p and min-p. Rows with penalties, biases, bans or log probabilities are the host sampler's
// (engine/sampling).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/status.h"

namespace nibble::kernels::cuda {

struct SampleParams {
  float temperature = 0.0F;  // 0: the largest logit, ties by the lower id
  float top_p = 1.0F;
  float min_p = 0.0F;
  int32_t top_k = 0;     // 0: all
  float uniform = 0.5F;  // in (0, 1): engine::UniformFromCounter(seed, index)
};

struct SampleArgs {
  int64_t num_rows = 0;
  int64_t vocab_size = 0;         // 1..2^18
  const float* logits = nullptr;  // [num_rows, stride]; not changed
  int64_t stride = 0;
  const SampleParams* params = nullptr;  // [num_rows], device memory
  // [num_rows], device memory: the token, or -1 for a row without a finite logit.
  int32_t* token_ids = nullptr;
  // SampleWorkspaceBytes() of device memory, of any content, aligned to 16 bytes; one call at a
  // time. May be null where that is 0.
  void* workspace = nullptr;
};
int64_t SampleWorkspaceBytes(int64_t max_rows, int64_t vocab_size);

// As engine::SampleRow chooses (min_p, then top_k, then top_p; the same uniform number walks the
// same cumulative sum), but for rounding in sums over the vocabulary: where two tokens border
// within that, the other one may be chosen. The same row gives the same token whatever the batch.
absl::Status Sample(const SampleArgs& args, cudaStream_t stream);

}  // namespace nibble::kernels::cuda
