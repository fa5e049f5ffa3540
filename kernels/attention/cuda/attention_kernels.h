// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the kernels of kNibble are given. They are launched on plans of attention_plan.h.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/status.h"
#include "kernels/attention/cuda/paged_attention.h"

namespace nibble::kernels::cuda {

struct AttentionParams {
  const int32_t* plan = nullptr;  // AttentionPlanHeader first
  // [num_tasks, num_kv_heads]: units of a task that are done. Zero between launches.
  int32_t* num_done = nullptr;
  float* states = nullptr;       // [state rows, num_kv_heads, head_dim]: weighted sums of values
  float2* state_sums = nullptr;  // [state rows, num_kv_heads]: (maximum, sum of weights)
  const void* keys = nullptr;
  const void* values = nullptr;
  const float* key_scales = nullptr;
  const float* value_scales = nullptr;
  const void* q = nullptr;
  void* out = nullptr;
  int64_t q_stride = 0;
  int64_t out_stride = 0;
  int32_t num_kv_heads = 0;
  int32_t group = 0;
  int32_t block_size = 0;
  int32_t head_dim = 0;
  int32_t window = 0;   // 0: none
  int32_t is_wide = 0;  // which of the plan's units
  float scale = 1.0F;
  float scale_log2 = 1.0F;  // scale * log2(e)
};

using AttentionLauncher = absl::Status (*)(const AttentionParams& params, int64_t num_blocks,
                                           cudaStream_t stream);

// ---- Any head_dim, any type: float32 arithmetic with the bits of the CPU's kernels ----

constexpr int64_t kPlainSegmentKeys = 512;  // of kernels/attention/attention_tasks.h
constexpr int64_t kPlainRows = 16;
AttentionLauncher PlainAttentionLauncher(DType kv_dtype, DType activation);
int64_t PlainAttentionSharedBytes(int64_t head_dim);

// ---- Tensor cores: bfloat16 activations, some sizes of heads ----

constexpr int64_t kMmaSegmentKeys = 256;
constexpr int64_t kMmaNarrowRows = 16;
constexpr int64_t kMmaWideRows = 64;
// A size of heads; each in a source of its own, as they take long to compile.
struct MmaInstance {
  int64_t head_dim = 0;
  // For narrow and wide units; null where there is no wide form.
  AttentionLauncher bf16[2] = {nullptr, nullptr};
  AttentionLauncher int8[2] = {nullptr, nullptr};
  int64_t shared_bytes = 0;  // that all of them need at most
};
MmaInstance MmaAttention64();
MmaInstance MmaAttention96();
MmaInstance MmaAttention128();
MmaInstance MmaAttention256();

}  // namespace nibble::kernels::cuda
