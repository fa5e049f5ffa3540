// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A thread's share of a row: 32 neighbouring values, in registers.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/float16.cuh"
#include "comm/codec/codec_scale.h"

namespace nibble::comm::cuda {

constexpr int kThreadValues = 32;

// DeviceRows as kernels want it.
struct Rows {
  void* data = nullptr;
  bool is_bf16 = false;
  int row_size = 0;
  int group_size = 0;
  int groups_per_row = 0;
};

// Where a thread's values lie; the rest of a row's last group are zeros that nobody stores.
struct Span {
  int64_t begin = 0;
  int count = 0;  // 0..32
};

__device__ __forceinline__ Span SpanOf(const Rows& rows, uint32_t group, int part) {
  const auto per_row = static_cast<uint32_t>(rows.groups_per_row);
  const uint32_t row = group / per_row;
  const int in_row =
      static_cast<int>(group - row * per_row) * rows.group_size + part * kThreadValues;
  const int left = rows.row_size - in_row;
  return {static_cast<int64_t>(row) * rows.row_size + in_row, left < 0 ? 0
                                                              : left < kThreadValues
                                                                  ? left
                                                                  : kThreadValues};
}

// Round to nearest even, with base/float16.h's NaNs.
__device__ __forceinline__ uint32_t Bf16Bits(float value) {
  const uint32_t bits = __float_as_uint(value);
  return (bits & 0x7fffffffU) > 0x7f800000U ? bits >> 16 | 0x40U : gpu::ToBf16(value).bits;
}

__device__ __forceinline__ bool IsAligned16(const void* data) {
  return (reinterpret_cast<uintptr_t>(data) & 15U) == 0;
}

__device__ __forceinline__ void LoadVector(const void* data, uint32_t* words, int num_words) {
  const auto* const from = static_cast<const uint4*>(data);
#pragma unroll
  for (int i = 0; i < num_words / 4; ++i) {
    const uint4 four = from[i];
    words[4 * i] = four.x;
    words[4 * i + 1] = four.y;
    words[4 * i + 2] = four.z;
    words[4 * i + 3] = four.w;
  }
}
__device__ __forceinline__ void StoreVector(void* data, const uint32_t* words, int num_words) {
  auto* const to = static_cast<uint4*>(data);
#pragma unroll
  for (int i = 0; i < num_words / 4; ++i) {
    to[i] = make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
  }
}

__device__ __forceinline__ void LoadFloats(const float* data, int count,
                                           float (&x)[kThreadValues]) {
  if (count == kThreadValues && IsAligned16(data)) {
    uint32_t words[kThreadValues];
    LoadVector(data, words, kThreadValues);
#pragma unroll
    for (int i = 0; i < kThreadValues; ++i) x[i] = __uint_as_float(words[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kThreadValues; ++i) x[i] = i < count ? data[i] : 0.0F;
}

__device__ __forceinline__ void LoadHalves(const uint16_t* data, int count,
                                           float (&x)[kThreadValues]) {
  if (count == kThreadValues && IsAligned16(data)) {
    uint32_t words[kThreadValues / 2];
    LoadVector(data, words, kThreadValues / 2);
#pragma unroll
    for (int i = 0; i < kThreadValues / 2; ++i) {
      x[2 * i] = __uint_as_float(words[i] << 16);
      x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000U);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kThreadValues; ++i) {
    x[i] = i < count ? __uint_as_float(static_cast<uint32_t>(data[i]) << 16) : 0.0F;
  }
}

__device__ __forceinline__ void LoadValues(const Rows& rows, const Span& span,
                                           float (&x)[kThreadValues]) {
  if (rows.is_bf16) {
    LoadHalves(static_cast<const uint16_t*>(rows.data) + span.begin, span.count, x);
  } else {
    LoadFloats(static_cast<const float*>(rows.data) + span.begin, span.count, x);
  }
}

__device__ __forceinline__ void StoreFloats(float* data, int count,
                                            const float (&x)[kThreadValues]) {
  if (count == kThreadValues && IsAligned16(data)) {
    uint32_t words[kThreadValues];
#pragma unroll
    for (int i = 0; i < kThreadValues; ++i) words[i] = __float_as_uint(x[i]);
    return StoreVector(data, words, kThreadValues);
  }
#pragma unroll
  for (int i = 0; i < kThreadValues; ++i) {
    if (i < count) data[i] = x[i];
  }
}

__device__ __forceinline__ void StoreHalves(uint16_t* data, int count,
                                            const float (&x)[kThreadValues]) {
  if (count == kThreadValues && IsAligned16(data)) {
    uint32_t words[kThreadValues / 2];
#pragma unroll
    for (int i = 0; i < kThreadValues / 2; ++i) {
      words[i] = Bf16Bits(x[2 * i]) | Bf16Bits(x[2 * i + 1]) << 16;
    }
    return StoreVector(data, words, kThreadValues / 2);
  }
#pragma unroll
  for (int i = 0; i < kThreadValues; ++i) {
    if (i < count) data[i] = static_cast<uint16_t>(Bf16Bits(x[i]));
  }
}

__device__ __forceinline__ void StoreValues(const Rows& rows, const Span& span,
                                            const float (&x)[kThreadValues]) {
  if (rows.is_bf16) {
    StoreHalves(static_cast<uint16_t*>(rows.data) + span.begin, span.count, x);
  } else {
    StoreFloats(static_cast<float*>(rows.data) + span.begin, span.count, x);
  }
}

}  // namespace nibble::comm::cuda
