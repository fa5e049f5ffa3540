// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The paged KV cache of one layer in device memory, and appending to it. Unlike on CPUs, keys lie
// position by position, as values do: [num_blocks, num_kv_heads, block_size, head_dim], the layout
// that FlashInfer calls HND.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/dtype.h"
#include "base/status.h"
#include "kernels/device/device_matrix.h"

namespace nibble::kernels::cuda {

struct KvCacheView {
  void* keys = nullptr;    // [num_blocks, num_kv_heads, block_size, head_dim]
  void* values = nullptr;  // the same
  // [num_blocks, num_kv_heads, block_size]; int8 only, else null. Element = int8 * scale.
  float* key_scales = nullptr;
  float* value_scales = nullptr;
  DType dtype = DType::kBf16;  // f32, bf16 or i8
  int64_t num_blocks = 0;
  int64_t num_kv_heads = 0;
  int64_t block_size = 16;
  int64_t head_dim = 0;  // a multiple of 8, at most 256
};

struct RopeKvAppendArgs {
  int64_t num_tokens = 0;
  // [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]: queries, keys, values. Queries are
  // normed and rotated in place; keys and values go to the cache.
  DeviceMatrix qkv;
  int64_t num_heads = 0;
  // [head_dim] each: RMSNorm of every head before the rotation. Null: none.
  const float* q_norm = nullptr;
  const float* k_norm = nullptr;
  float epsilon = 1e-6F;
  // [max_positions, rotary_dim / 2] each: kernels::MakeRopeTable's, uploaded.
  const float* cos = nullptr;
  const float* sin = nullptr;
  int64_t rotary_dim = 0;
  const int32_t* positions = nullptr;  // [num_tokens]; those of padding may be negative
  // [num_tokens], distinct slots in [0, num_blocks * block_size); -1: a token that is padding of a
  // captured graph, whose keys and values go nowhere.
  const int32_t* slot_mapping = nullptr;
};

// RMSNorm of heads, ApplyRope and KvAppend of the CPU ops in one pass. int8 as
// kernels/quant/quantize_rows.h, with a scale for each head and token.
absl::Status RopeKvAppend(const KvCacheView& cache, const RopeKvAppendArgs& args,
                          cudaStream_t stream);

}  // namespace nibble::kernels::cuda
