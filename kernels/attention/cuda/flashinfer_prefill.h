// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// FlashInfer's paged prefill in plain types: the sources that include the library are the only ones
// that see it, and its exceptions end in them.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/status.h"

namespace nibble::kernels::cuda::flashinfer_prefill {

struct Shape {
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t block_size = 0;
};

// Memory that plans and kernels of the library work in.
struct Workspace {
  void* floats = nullptr;  // device
  size_t float_bytes = 0;
  void* ints = nullptr;  // device
  void* pinned = nullptr;
  size_t int_bytes = 0;  // of ints, and of pinned
};

// Host arrays; sequences have one new token at least.
struct Step {
  int32_t num_seqs = 0;
  int32_t num_tokens = 0;
  int32_t* query_start = nullptr;  // [num_seqs + 1]
  int32_t* pages_start = nullptr;  // [num_seqs + 1]
};
// The same, and the rest, in device memory.
struct DeviceStep {
  int32_t* query_start = nullptr;
  int32_t* pages_start = nullptr;
  int32_t* pages = nullptr;           // [pages_start[num_seqs]]
  int32_t* last_page_lens = nullptr;  // [num_seqs]
};

struct Tensors {
  void* q = nullptr;  // [num_tokens, q_stride] of bfloat16
  int64_t q_stride = 0;
  void* keys = nullptr;  // [num_blocks, num_kv_heads, block_size, head_dim] of bfloat16
  void* values = nullptr;
  void* out = nullptr;  // [num_tokens, num_heads * head_dim] of bfloat16
  float scale = 1.0F;
};

// The library's plan of a step (its PrefillPlanInfo).
class Plan {
 public:
  Plan();
  ~Plan();
  // Uploads to workspace.ints through workspace.pinned.
  absl::Status Make(const Shape& shape, const Step& step, const Workspace& workspace,
                    cudaStream_t stream);
  absl::Status Run(const Shape& shape, const DeviceStep& step, const Workspace& workspace,
                   const Tensors& tensors, cudaStream_t stream) const;

 private:
  struct Info;
  std::unique_ptr<Info> info_;
  int32_t num_seqs_ = 0;
};

}  // namespace nibble::kernels::cuda::flashinfer_prefill
