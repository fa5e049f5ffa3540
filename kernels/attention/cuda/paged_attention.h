// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Causal attention over the paged KV cache on a device: kernels/attention/paged_attention.h, for
// prefill chunks and decode alike. kNibble is batch invariant in the same sense; kFlashInfer is for
// decode steps, but not for steps with chunks (README.md).
//
// A step is planned once on the host (which blocks of the grid do what), and run for every layer:
//
//   NIBBLE_ASSIGN_OR_RETURN(auto attention, DeviceAttention::Create(shape, limits, caps));
//   NIBBLE_RETURN_IF_ERROR(attention->Plan(step, stream));
//   for (layer...) NIBBLE_RETURN_IF_ERROR(attention->Run(cache, {...}, stream));
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <string>

#include "base/cuda/device.h"
#include "base/status.h"
#include "kernels/device/device_matrix.h"
#include "kernels/kv/cuda/kv_cache.h"

namespace nibble::kernels::cuda {

struct AttentionShape {
  int64_t num_heads = 0;  // a multiple of num_kv_heads
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;  // a multiple of 8, at most 256
  int64_t block_size = 16;
  DType kv_dtype = DType::kBf16;    // f32, bf16 or i8
  DType activation = DType::kBf16;  // of queries and output: f32 or bf16
};

struct AttentionLimits {
  int64_t max_tokens = 0;  // of a step
  int64_t max_seqs = 0;
  int64_t max_blocks_per_seq = 0;
};

enum class AttentionBackend {
  kAuto,  // kFlashInfer where it has the shape and the build has it, else kNibble
  kNibble,
  // Steps that have a sequence of several new tokens and no window that hides something; others,
  // captured graphs among them, are kNibble's.
  kFlashInfer,
  kFlashInferDecode,  // kFlashInfer, decode steps too (no graphs'): what benchmarks compare with
};

// Host arrays of a step plan.
struct AttentionStep {
  int64_t num_seqs = 0;
  const int32_t* query_start = nullptr;   // [num_seqs + 1]
  const int32_t* context_lens = nullptr;  // [num_seqs]
  const int32_t* block_tables = nullptr;  // [num_seqs, max_blocks_per_seq]
  int64_t max_blocks_per_seq = 0;
  // Decode steps that a captured graph will replay: the launches of Run() depend on this and the
  // limits alone, and not on the step; outputs of sequences beyond num_seqs are zeros. 0: any step.
  int64_t graph_seqs = 0;  // sequences of the graph, >= num_seqs, one query token each
};

struct AttentionArgs {
  DeviceMatrix q;    // [num_tokens, num_heads * head_dim] from column 0 of a wider matrix
  DeviceMatrix out;  // [num_tokens, num_heads * head_dim]
  float scale = 1.0F;
  int64_t sliding_window = 0;  // 0: none
};

// Plans and intermediate results lie in memory of the object: one stream, one thread at a time.
class DeviceAttention {
 public:
  // Takes the memory that steps within the limits need. UNIMPLEMENTED, naming the field and the
  // limit, for a shape that `backend` does not have.
  static absl::StatusOr<std::unique_ptr<DeviceAttention>> Create(const AttentionShape& shape,
                                                                 const AttentionLimits& limits,
                                                                 const gpu::DeviceCaps& caps,
                                                                 AttentionBackend backend);
  virtual ~DeviceAttention() = default;
  virtual std::string name() const = 0;  // "flashinfer", "nibble"
  // Uploads what Run() of this step reads, from pinned memory of its own: the next Plan() may come
  // when the stream has passed this one's copies. Not to be captured.
  virtual absl::Status Plan(const AttentionStep& step, cudaStream_t stream) = 0;
  // REQUIRES: keys and values of the step are in the cache when the stream gets here.
  virtual absl::Status Run(const KvCacheView& cache, const AttentionArgs& args,
                           cudaStream_t stream) = 0;
};

}  // namespace nibble::kernels::cuda
