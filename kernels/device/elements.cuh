// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Eight elements of a row as floats: what a thread of a row op reads and writes at a time, so that
// every access of a 16-bit row is of 16 bytes.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/float16.cuh"
#include "base/dtype.h"
#include "kernels/device/device_matrix.h"

namespace nibble::kernels::cuda {

constexpr int kElements = 8;

struct Float8 {
  float v[kElements];
};

// REQUIRES: data aligned to the bytes of 8 elements, but 16 at most.
__device__ __forceinline__ Float8 Load8(const float* data) {
  const float4 low = reinterpret_cast<const float4*>(data)[0];
  const float4 high = reinterpret_cast<const float4*>(data)[1];
  return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
}
template <typename T, float2 (*kUnpack)(uint32_t)>
__device__ __forceinline__ Float8 LoadPairs(const T* data) {
  const uint4 words = *reinterpret_cast<const uint4*>(data);
  const float2 a = kUnpack(words.x);
  const float2 b = kUnpack(words.y);
  const float2 c = kUnpack(words.z);
  const float2 d = kUnpack(words.w);
  return {{a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y}};
}
__device__ __forceinline__ Float8 Load8(const gpu::Bf16* data) {
  return LoadPairs<gpu::Bf16, gpu::UnpackBf16x2>(data);
}
__device__ __forceinline__ Float8 Load8(const gpu::Half* data) {
  return LoadPairs<gpu::Half, gpu::UnpackHalfx2>(data);
}

__device__ __forceinline__ void Store8(float* data, const Float8& x) {
  reinterpret_cast<float4*>(data)[0] = make_float4(x.v[0], x.v[1], x.v[2], x.v[3]);
  reinterpret_cast<float4*>(data)[1] = make_float4(x.v[4], x.v[5], x.v[6], x.v[7]);
}
__device__ __forceinline__ void Store8(gpu::Bf16* data, const Float8& x) {
  *reinterpret_cast<uint4*>(data) =
      make_uint4(gpu::PackBf16x2(x.v[0], x.v[1]), gpu::PackBf16x2(x.v[2], x.v[3]),
                 gpu::PackBf16x2(x.v[4], x.v[5]), gpu::PackBf16x2(x.v[6], x.v[7]));
}
__device__ __forceinline__ void Store8(gpu::Half* data, const Float8& x) {
  *reinterpret_cast<uint4*>(data) =
      make_uint4(gpu::PackHalfx2(x.v[0], x.v[1]), gpu::PackHalfx2(x.v[2], x.v[3]),
                 gpu::PackHalfx2(x.v[4], x.v[5]), gpu::PackHalfx2(x.v[6], x.v[7]));
}

// Of a matrix whose type is known at run time; `index` counts elements.
__device__ __forceinline__ Float8 Load8(const DeviceMatrix& x, int64_t index) {
  switch (x.dtype) {
    case DType::kBf16:
      return Load8(static_cast<const gpu::Bf16*>(x.data) + index);
    case DType::kF16:
      return Load8(static_cast<const gpu::Half*>(x.data) + index);
    default:
      return Load8(static_cast<const float*>(x.data) + index);
  }
}
__device__ __forceinline__ void Store8(const DeviceMatrix& x, int64_t index, const Float8& value) {
  switch (x.dtype) {
    case DType::kBf16:
      return Store8(static_cast<gpu::Bf16*>(x.data) + index, value);
    case DType::kF16:
      return Store8(static_cast<gpu::Half*>(x.data) + index, value);
    default:
      return Store8(static_cast<float*>(x.data) + index, value);
  }
}

// kernels/quant/quantize_rows.h, the parts of a row: bits of the largest magnitude (a NaN's are
// above infinity's), what these make the scale, and codes.
__device__ __forceinline__ int MagnitudeBits(const Float8& x) {
  int max = 0;
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    max = ::max(max, __float_as_int(x.v[i]) & 0x7FFFFFFF);
  }
  return max;
}

struct RowScale {
  float scale;
  float inverse;
  bool zeros;  // the codes are 0
};
__device__ __forceinline__ RowScale MakeRowScale(int max_bits) {
  // The limits of kernels/quant/quantize_rows_kernels.h.
  constexpr int kNonFinite = 0x7F800000;
  constexpr int kSmallest = 8 << 23;
  if (max_bits >= kNonFinite) return {__int_as_float(0x7FC00000), 0.0F, true};
  if (max_bits < kSmallest) return {0.0F, 0.0F, true};
  const float max = __int_as_float(max_bits);
  return {max / 127.0F, 127.0F / max, false};
}

// Writes 8 codes and returns their sum.
__device__ __forceinline__ int QuantizeTo(int8_t* codes, const Float8& x, const RowScale& scale) {
  int sum = 0;
  unsigned words[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    const int code = scale.zeros ? 0 : __float2int_rn(x.v[i] * scale.inverse);
    sum += code;
    words[i / 4] |= (static_cast<unsigned>(code) & 0xFFU) << (8 * (i % 4));
  }
  *reinterpret_cast<uint2*>(codes) = make_uint2(words[0], words[1]);
  return sum;
}

}  // namespace nibble::kernels::cuda
