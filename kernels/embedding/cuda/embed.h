// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Rows of the embedding table, and rows that go on while others stay behind.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/status.h"
#include "kernels/device/device_matrix.h"

namespace nibble::kernels::cuda {

struct EmbedArgs {
  int64_t num_tokens = 0;
  int64_t hidden = 0;
  const int32_t* token_ids = nullptr;  // [num_tokens]
  const void* table = nullptr;         // [end_id - begin_id, hidden] of dtype
  DType dtype = DType::kBf16;          // f32, bf16 or f16
  int64_t begin_id = 0;  // this rank's share of the vocabulary; other tokens give zeros
  int64_t end_id = 0;
  float* out = nullptr;  // [num_tokens, hidden]
};
absl::Status Embed(const EmbedArgs& args, cudaStream_t stream);

// to[i] = from[rows[i]], `row_bytes` each, a multiple of 4. REQUIRES: no overlap.
absl::Status GatherRows(const void* from, const int32_t* rows, int64_t num_rows, int64_t row_bytes,
                        void* to, cudaStream_t stream);

}  // namespace nibble::kernels::cuda
