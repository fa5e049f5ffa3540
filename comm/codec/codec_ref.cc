// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The definition: one group at a time, one value at a time. The other instruction sets write the
// same bytes and read the same floats.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/float16.h"
#include "comm/codec/codec_kernels.h"
#include "comm/codec/codec_scale.h"

namespace nibble::comm::ref {
namespace {

// What travels of one group.
struct GroupCode {
  uint8_t codes[kMaxGroupSize] = {};
  uint16_t scale = 0;
  uint8_t zero = 0;
  uint16_t spike_values[2] = {};
  uint8_t spike_indices[2] = {};
};

// Where value i of a group has its bits: planes hold blocks of 32 values.
struct BitPosition {
  int64_t byte;
  int shift;
};
BitPosition InPlane(int width, int group_size, int64_t group, int i) {
  const int64_t block = group * (group_size / 32) + i / 32;
  const int j = i % 32;
  if (width == 1) return {block * 4 + j / 8, j % 8};
  return {block * 4 * width + j % (4 * width), width * (j / (4 * width))};
}

void WritePlane(int width, int from_bit, const GroupLayout& layout, const GroupCode& code,
                int64_t group, uint8_t* plane) {
  for (int i = 0; i < layout.group_size; ++i) {
    const BitPosition at = InPlane(width, layout.group_size, group, i);
    const int mask = (1 << width) - 1;
    const int bits = (code.codes[i] >> from_bit) & mask;
    plane[at.byte] =
        static_cast<uint8_t>((plane[at.byte] & ~(mask << at.shift)) | (bits << at.shift));
  }
}

void ReadPlane(int width, int from_bit, const GroupLayout& layout, const uint8_t* plane,
               int64_t group, GroupCode* code) {
  for (int i = 0; i < layout.group_size; ++i) {
    const BitPosition at = InPlane(width, layout.group_size, group, i);
    const int bits = (plane[at.byte] >> at.shift) & ((1 << width) - 1);
    code->codes[i] = static_cast<uint8_t>(code->codes[i] | (bits << from_bit));
  }
}

void WriteGroup(const GroupLayout& layout, const GroupCode& code, int64_t group, uint8_t* out) {
  const int bits = layout.bits;
  int done = 0;  // bits written, from the lowest
  if (bits == 8)
    std::memcpy(out + layout.values + group * layout.group_size, code.codes,
                static_cast<size_t>(layout.group_size));
  if (bits >= 4 && bits < 8) {
    WritePlane(4, 0, layout, code, group, out + layout.nibbles);
    done = 4;
  }
  if (bits == 6 || bits < 4) {
    WritePlane(2, done, layout, code, group, out + layout.pairs);
    done += 2;
  }
  if (bits == 5 || bits == 3) WritePlane(1, done, layout, code, group, out + layout.singles);
  if (layout.log2_scales) {
    out[layout.scales + group] = static_cast<uint8_t>(code.scale);
  } else {
    std::memcpy(out + layout.scales + 2 * group, &code.scale, 2);
  }
  out[layout.zeros + group] = code.zero;
  if (!layout.spikes) return;
  std::memcpy(out + layout.spike_values + 4 * group, code.spike_values, 4);
  std::memcpy(out + layout.spike_indices + 2 * group, code.spike_indices, 2);
}

GroupCode ReadGroup(const GroupLayout& layout, const uint8_t* in, int64_t group) {
  GroupCode code;
  const int bits = layout.bits;
  int done = 0;
  if (bits == 8)
    std::memcpy(code.codes, in + layout.values + group * layout.group_size,
                static_cast<size_t>(layout.group_size));
  if (bits >= 4 && bits < 8) {
    ReadPlane(4, 0, layout, in + layout.nibbles, group, &code);
    done = 4;
  }
  if (bits == 6 || bits < 4) {
    ReadPlane(2, done, layout, in + layout.pairs, group, &code);
    done += 2;
  }
  if (bits == 5 || bits == 3) ReadPlane(1, done, layout, in + layout.singles, group, &code);
  if (layout.log2_scales) {
    code.scale = in[layout.scales + group];
  } else {
    std::memcpy(&code.scale, in + layout.scales + 2 * group, 2);
  }
  code.zero = in[layout.zeros + group];
  if (layout.spikes) {
    std::memcpy(code.spike_values, in + layout.spike_values + 4 * group, 4);
    std::memcpy(code.spike_indices, in + layout.spike_indices + 2 * group, 2);
  }
  return code;
}

// In place, its own inverse: scaled first, then butterflies of distance 1, 2, 4 ... in this order.
void Rotate(int group_size, float* values) {
  for (int i = 0; i < group_size; ++i) values[i] *= RotationScale(group_size);
  for (int distance = 1; distance < group_size; distance *= 2) {
    for (int i = 0; i < group_size; ++i) {
      if ((i & distance) != 0) continue;
      const float sum = values[i] + values[i + distance];
      const float difference = values[i] - values[i + distance];
      values[i] = sum;
      values[i + distance] = difference;
    }
  }
}

bool AllFinite(int group_size, const float* values) {
  return std::all_of(values, values + group_size, [](float x) { return std::isfinite(x); });
}

// Decodes to NaN, all of it.
GroupCode NanGroup(const GroupLayout& layout) {
  GroupCode code;
  code.scale = layout.log2_scales ? kNanLog2 : kNanBf16;
  if (layout.spikes) code.spike_values[0] = code.spike_values[1] = kNanBf16;
  return code;
}

// Codes finite values, which it uses up.
GroupCode Quantize(const GroupLayout& layout, float* values) {
  GroupCode code;
  float* const end = values + layout.group_size;
  for (float* x = values; x < end; ++x) *x = std::clamp(*x, -kLargest, kLargest);
  if (layout.spikes) {
    float* const spikes[2] = {std::min_element(values, end), std::max_element(values, end)};
    for (int i = 0; i < 2; ++i) {
      code.spike_values[i] = SpikeCode(*spikes[i]);
      code.spike_indices[i] = static_cast<uint8_t>(spikes[i] - values);
    }
    for (float* spike : spikes) *spike = 0.0F;
  }
  const float low = std::min(0.0F, *std::min_element(values, end));
  const float high = std::max(0.0F, *std::max_element(values, end));
  const GroupScale group = ScaleOf(low, high, layout.bits, layout.log2_scales);
  code.scale = group.code;
  code.zero = static_cast<uint8_t>(group.zero);
  const auto levels = static_cast<float>((1 << layout.bits) - 1);
  for (int i = 0; i < layout.group_size; ++i) {
    // x / scale + zero, rounded once, to a whole number, half to even.
    const float q = std::fma(values[i], group.inverse, kRounder + group.zero) - kRounder;
    code.codes[i] = static_cast<uint8_t>(std::clamp(q, 0.0F, levels));
  }
  return code;
}

void Dequantize(const GroupLayout& layout, const GroupCode& code, float* values) {
  const float scale = ScaleOfCode(code.scale, layout.log2_scales);
  for (int i = 0; i < layout.group_size; ++i) {
    values[i] = static_cast<float>(code.codes[i] - code.zero) * scale;
  }
  if (!layout.spikes) return;
  for (int i = 0; i < 2; ++i) {
    values[code.spike_indices[i] % layout.group_size] = SpikeOfCode(code.spike_values[i]);
  }
}

// bf16 and float32 have no groups: values stand in their order.
void EncodeValue(const GroupLayout& layout, float value, int64_t index, uint8_t* out) {
  if (layout.bits == 32) {
    std::memcpy(out + 4 * index, &value, 4);
  } else {
    const BFloat16 rounded = ToBFloat16(value);
    std::memcpy(out + 2 * index, &rounded.bits, 2);
  }
}

// One group as it lies in `in`, rotated if the codec rotates.
void DecodeGroup(const GroupLayout& layout, const uint8_t* in, int64_t group, float* values) {
  if (layout.bits <= 8) return Dequantize(layout, ReadGroup(layout, in, group), values);
  for (int i = 0; i < layout.group_size; ++i) {
    const int64_t index = group * layout.group_size + i;
    if (layout.bits == 32) {
      std::memcpy(values + i, in + 4 * index, 4);
    } else {
      BFloat16 value;
      std::memcpy(&value.bits, in + 2 * index, 2);
      values[i] = ToFloat(value);
    }
  }
}

void SumGroup(const GroupLayout& layout, const uint8_t* const* pieces, int num_pieces,
              int64_t group, float* sums) {
  DecodeGroup(layout, pieces[0], group, sums);
  for (int piece = 1; piece < num_pieces; ++piece) {
    float values[kMaxGroupSize];
    DecodeGroup(layout, pieces[piece], group, values);
    for (int i = 0; i < layout.group_size; ++i) sums[i] += values[i];
  }
}

// `rotate`: of values that are not rotated yet. Uses them up.
void EncodeGroup(const GroupLayout& layout, bool rotate, float* values, int64_t group,
                 uint8_t* out) {
  if (layout.bits > 8) {
    for (int i = 0; i < layout.group_size; ++i) {
      EncodeValue(layout, values[i], group * layout.group_size + i, out);
    }
    return;
  }
  if (!AllFinite(layout.group_size, values)) {
    return WriteGroup(layout, NanGroup(layout), group, out);
  }
  if (rotate) {
    for (int i = 0; i < layout.group_size; ++i) {
      values[i] = std::clamp(values[i], -kLargestRotated, kLargestRotated);
    }
    Rotate(layout.group_size, values);
  }
  WriteGroup(layout, Quantize(layout, values), group, out);
}

}  // namespace

void EncodeGroups(const GroupLayout& layout, const float* x, int64_t first, int64_t count,
                  uint8_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    float values[kMaxGroupSize];
    std::copy_n(x + i * layout.group_size, layout.group_size, values);
    EncodeGroup(layout, layout.rotation, values, first + i, out);
  }
}

void DecodeGroups(const GroupLayout& layout, const uint8_t* const* pieces, int num_pieces,
                  int64_t first, int64_t count, float* x) {
  for (int64_t i = 0; i < count; ++i) {
    float* const values = x + i * layout.group_size;
    SumGroup(layout, pieces, num_pieces, first + i, values);
    if (layout.rotation) Rotate(layout.group_size, values);
  }
}

void ReduceGroups(const GroupLayout& layout, const uint8_t* const* pieces, int num_pieces,
                  int64_t count, uint8_t* out) {
  for (int64_t group = 0; group < count; ++group) {
    float sums[kMaxGroupSize];
    SumGroup(layout, pieces, num_pieces, group, sums);
    EncodeGroup(layout, false, sums, group, out);
  }
}

}  // namespace nibble::comm::ref
