// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A group's codes from and to the bytes that travel (comm/codec/README.md, Layout), and the two
// codecs without groups in the same form. A thread reads and writes its 32 values' bytes of each
// plane at once: 16 of the nibbles, 8 of the pairs, 4 of the singles.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "comm/codec/cuda/codec_group.cuh"

namespace nibble::comm::cuda {

__device__ __forceinline__ void StoreWords2(uint8_t* data, const uint32_t* words) {
  *reinterpret_cast<uint2*>(data) = make_uint2(words[0], words[1]);
}
__device__ __forceinline__ void LoadWords2(const uint8_t* data, uint32_t* words) {
  const uint2 two = *reinterpret_cast<const uint2*>(data);
  words[0] = two.x;
  words[1] = two.y;
}

template <int kBits>
__device__ __forceinline__ void StoreCode(const GroupLayout& layout, const ThreadCode<kBits>& code,
                                          int64_t group, uint8_t* out) {
  const int64_t block = group * TeamSize(layout) + TeamPart(layout);
  if constexpr (kBits == 8) StoreVector(out + layout.values + block * 32, code.words, 8);
  if constexpr (kBits >= 4 && kBits < 8) {
    StoreVector(out + layout.nibbles + block * 16, code.words, 4);
  }
  if constexpr (kBits == 6 || kBits < 4) {
    StoreWords2(out + layout.pairs + block * 8, code.words + (kBits == 6 ? 4 : 0));
  }
  if constexpr (kBits == 5 || kBits == 3) {
    *reinterpret_cast<uint32_t*>(out + layout.singles + block * 4) = code.words[kBits - 1];
  }
  if (TeamPart(layout) != 0) return;
  if (layout.log2_scales) {
    out[layout.scales + group] = static_cast<uint8_t>(code.scale);
  } else {
    *reinterpret_cast<uint16_t*>(out + layout.scales + 2 * group) =
        static_cast<uint16_t>(code.scale);
  }
  out[layout.zeros + group] = static_cast<uint8_t>(code.zero);
  if (!layout.spikes) return;
  *reinterpret_cast<uint32_t*>(out + layout.spike_values + 4 * group) = code.spike_values;
  *reinterpret_cast<uint16_t*>(out + layout.spike_indices + 2 * group) =
      static_cast<uint16_t>(code.spike_indices);
}

template <int kBits>
__device__ __forceinline__ void LoadCode(const GroupLayout& layout, const uint8_t* in,
                                         int64_t group, ThreadCode<kBits>* code) {
  const int64_t block = group * TeamSize(layout) + TeamPart(layout);
  if constexpr (kBits == 8) LoadVector(in + layout.values + block * 32, code->words, 8);
  if constexpr (kBits >= 4 && kBits < 8) {
    LoadVector(in + layout.nibbles + block * 16, code->words, 4);
  }
  if constexpr (kBits == 6 || kBits < 4) {
    LoadWords2(in + layout.pairs + block * 8, code->words + (kBits == 6 ? 4 : 0));
  }
  if constexpr (kBits == 5 || kBits == 3) {
    code->words[kBits - 1] = *reinterpret_cast<const uint32_t*>(in + layout.singles + block * 4);
  }
  if (layout.log2_scales) {
    code->scale = in[layout.scales + group];
  } else {
    code->scale = *reinterpret_cast<const uint16_t*>(in + layout.scales + 2 * group);
  }
  code->zero = in[layout.zeros + group];
  if (!layout.spikes) return;
  code->spike_values = *reinterpret_cast<const uint32_t*>(in + layout.spike_values + 4 * group);
  code->spike_indices = *reinterpret_cast<const uint16_t*>(in + layout.spike_indices + 2 * group);
}

// Values to bytes. Uses the values up.
template <int kBits>
__device__ __forceinline__ void EncodeThread(const GroupLayout& layout, bool rotate, bool has_group,
                                             float (&x)[kThreadValues], int64_t group,
                                             uint8_t* out) {
  if constexpr (kBits <= 8) {
    ThreadCode<kBits> code;
    Quantize(layout, rotate, x, &code);
    if (has_group) StoreCode(layout, code, group, out);
  } else {
    if (!has_group) return;
    const int64_t block = group * TeamSize(layout) + TeamPart(layout);
    if constexpr (kBits == 16) {
      StoreHalves(reinterpret_cast<uint16_t*>(out + layout.values) + block * kThreadValues,
                  kThreadValues, x);
    } else {
      StoreFloats(reinterpret_cast<float*>(out + layout.values) + block * kThreadValues,
                  kThreadValues, x);
    }
  }
}

// Bytes to values, rotated where the codec rotates; zeros without a group.
template <int kBits>
__device__ __forceinline__ void DecodeThread(const GroupLayout& layout, bool has_group,
                                             const uint8_t* in, int64_t group,
                                             float (&x)[kThreadValues]) {
  if (!has_group) {
#pragma unroll
    for (int i = 0; i < kThreadValues; ++i) x[i] = 0.0F;
    return;
  }
  if constexpr (kBits <= 8) {
    ThreadCode<kBits> code;
    LoadCode(layout, in, group, &code);
    Dequantize(layout, code, x);
  } else {
    const int64_t block = group * TeamSize(layout) + TeamPart(layout);
    if constexpr (kBits == 16) {
      LoadHalves(reinterpret_cast<const uint16_t*>(in + layout.values) + block * kThreadValues,
                 kThreadValues, x);
    } else {
      LoadFloats(reinterpret_cast<const float*>(in + layout.values) + block * kThreadValues,
                 kThreadValues, x);
    }
  }
}

// What the values' codes decode to, without bytes in between.
template <int kBits>
__device__ __forceinline__ void RoundToCodec(const GroupLayout& layout, float (&x)[kThreadValues]) {
  if constexpr (kBits <= 8) {
    ThreadCode<kBits> code;
    Quantize(layout, false, x, &code);
    Dequantize(layout, code, x);
  } else if constexpr (kBits == 16) {
#pragma unroll
    for (int i = 0; i < kThreadValues; ++i) x[i] = __uint_as_float(Bf16Bits(x[i]) << 16);
  }
}

// The sum of pieces in order; piece(i) is the i-th one's bytes.
template <int kBits, typename Piece>
__device__ __forceinline__ void SumThread(const GroupLayout& layout, bool has_group,
                                          const Piece& piece, int num_pieces, int64_t group,
                                          float (&sums)[kThreadValues]) {
  DecodeThread<kBits>(layout, has_group, piece(0), group, sums);
  for (int i = 1; i < num_pieces; ++i) {
    float x[kThreadValues];
    DecodeThread<kBits>(layout, has_group, piece(i), group, x);
#pragma unroll
    for (int j = 0; j < kThreadValues; ++j) sums[j] += x[j];
  }
}

}  // namespace nibble::comm::cuda
