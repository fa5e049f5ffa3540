// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/codec/codec.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/check.h"
#include "comm/codec/codec_kernels.h"

namespace nibble::comm {
namespace {

constexpr int64_t kAlignment = 16;

int64_t Aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

struct Section {
  int64_t GroupLayout::*offset;
  int64_t bits_per_group;
};
using Sections = std::array<Section, 8>;

// In the order in which they lie.
Sections SectionsOf(const CodecDesc& desc) {
  const int bits = desc.bits;
  const int64_t size = desc.group_size;
  const bool integer = desc.is_integer();
  const bool spikes = integer && desc.spikes;
  const int64_t scale_bits = desc.scale == ScaleFormat::kLog2Int8 ? 8 : 16;
  return {{{&GroupLayout::values, bits >= 8 ? bits * size : 0},
           {&GroupLayout::nibbles, bits >= 4 && bits < 8 ? 4 * size : 0},
           {&GroupLayout::pairs, bits == 6 || bits < 4 ? 2 * size : 0},
           {&GroupLayout::singles, bits == 5 || bits == 3 ? size : 0},
           {&GroupLayout::scales, integer ? scale_bits : 0},
           {&GroupLayout::zeros, integer ? 8 : 0},
           {&GroupLayout::spike_values, spikes ? 32 : 0},
           {&GroupLayout::spike_indices, spikes ? 16 : 0}}};
}

// The bytes between the sections.
void ClearGaps(const CodecDesc& desc, const GroupLayout& layout, int64_t num_groups, uint8_t* out) {
  if (num_groups == 0) return;  // there may be no `out` either
  for (const Section& section : SectionsOf(desc)) {
    const int64_t bytes = num_groups * section.bits_per_group / 8;
    std::memset(out + layout.*section.offset + bytes, 0,
                static_cast<size_t>(Aligned(bytes) - bytes));
  }
}

struct Kernels {
  decltype(&ref::EncodeGroups) encode;
  decltype(&ref::DecodeGroups) decode;
  decltype(&ref::ReduceGroups) reduce;
};

Kernels KernelsOf(Isa isa) {
  switch (isa) {
    case Isa::kRef:
      break;
    case Isa::kAvx2:
      return {avx2::EncodeGroups, avx2::DecodeGroups, avx2::ReduceGroups};
    case Isa::kAvx512Vnni:
    case Isa::kAmx:
      return {avx512vnni::EncodeGroups, avx512vnni::DecodeGroups, avx512vnni::ReduceGroups};
  }
  return {ref::EncodeGroups, ref::DecodeGroups, ref::ReduceGroups};
}

void CheckShape(const CodecDesc& desc, const RowGroups& groups, int64_t first, int64_t count) {
  NIBBLE_CHECK_EQ(desc.group_size, groups.group_size);
  NIBBLE_CHECK_GE(first, 0);
  NIBBLE_CHECK(count == 0 || groups.row_size > 0);
}

// Cuts groups [first, first + count) at the short groups that end rows: run(x_offset, index, num)
// for whole groups that lie one after the other, tail(x_offset, index, size) for a short one. Index
// counts from `first`.
template <typename Run, typename Tail>
void ForRuns(const RowGroups& groups, int64_t first, int64_t count, const Run& run,
             const Tail& tail) {
  const int64_t size = groups.group_size;
  const int64_t whole = groups.row_size / size;  // groups of a row
  const int64_t rest = groups.row_size - whole * size;
  if (rest == 0) return run(first * size, 0, count);
  for (int64_t index = 0; index < count;) {
    const int64_t row = (first + index) / (whole + 1);
    const int64_t in_row = (first + index) % (whole + 1);
    const int64_t offset = row * groups.row_size + in_row * size;
    if (in_row == whole) {
      tail(offset, index, rest);
      ++index;
      continue;
    }
    const int64_t num = std::min(whole - in_row, count - index);
    run(offset, index, num);
    index += num;
  }
}

}  // namespace

GroupLayout LayoutOf(const CodecDesc& desc, int64_t num_groups) {
  GroupLayout layout{.bits = desc.bits,
                     .group_size = desc.group_size,
                     .log2_scales = desc.scale == ScaleFormat::kLog2Int8,
                     .spikes = desc.is_integer() && desc.spikes,
                     .rotation = desc.is_integer() && desc.rotation};
  for (const Section& section : SectionsOf(desc)) {
    layout.*section.offset = layout.bytes;
    layout.bytes += Aligned(num_groups * section.bits_per_group / 8);
  }
  return layout;
}

absl::Status Validate(const CodecDesc& desc) {
  constexpr int kBits[] = {2, 3, 4, 5, 6, 8, 16, 32};
  if (std::find(std::begin(kBits), std::end(kBits), desc.bits) == std::end(kBits)) {
    return InvalidArgument("codec has {} bits, want 2, 3, 4, 5, 6, 8, 16 or 32", desc.bits);
  }
  if (desc.group_size != 32 && desc.group_size != 64 && desc.group_size != 128) {
    return InvalidArgument("codec has groups of {} values, want 32, 64 or 128", desc.group_size);
  }
  if (desc.scale != ScaleFormat::kBf16 && desc.scale != ScaleFormat::kLog2Int8) {
    return InvalidArgument("codec has scale format {}, want 0 (bf16) or 1 (log2)",
                           static_cast<int>(desc.scale));
  }
  return absl::OkStatus();
}

std::string ToString(const CodecDesc& desc) {
  if (desc.bits == 32) return "float32";
  if (desc.bits == 16) return "bf16";
  return fmt::format("int{} g{}{}{}{}", desc.bits, desc.group_size,
                     desc.scale == ScaleFormat::kLog2Int8 ? " log2" : "",
                     desc.spikes ? " spikes" : "", desc.rotation ? " hadamard" : "");
}

double EffectiveBits(const CodecDesc& desc) {
  int64_t bits_per_group = 0;
  for (const Section& section : SectionsOf(desc)) bits_per_group += section.bits_per_group;
  return static_cast<double>(bits_per_group) / desc.group_size;
}

int64_t EncodedBytes(const CodecDesc& desc, int64_t num_groups) {
  return LayoutOf(desc, num_groups).bytes;
}

void Encode(const CodecDesc& desc, const RowGroups& groups, const float* x, int64_t first,
            int64_t count, uint8_t* out, Isa isa) {
  CheckShape(desc, groups, first, count);
  const GroupLayout layout = LayoutOf(desc, count);
  const auto encode = KernelsOf(isa).encode;
  ForRuns(
      groups, first, count,
      [&](int64_t offset, int64_t index, int64_t num) {
        encode(layout, x + offset, index, num, out);
      },
      [&](int64_t offset, int64_t index, int64_t size) {
        float padded[kMaxGroupSize] = {};
        std::copy_n(x + offset, size, padded);
        encode(layout, padded, index, 1, out);
      });
  ClearGaps(desc, layout, count, out);
}

void Decode(const CodecDesc& desc, const RowGroups& groups, const uint8_t* in, int64_t first,
            int64_t count, float* x, Isa isa) {
  DecodeSum(desc, groups, &in, 1, first, count, x, isa);
}

void DecodeSum(const CodecDesc& desc, const RowGroups& groups, const uint8_t* const* pieces,
               int num_ranks, int64_t first, int64_t count, float* x, Isa isa) {
  CheckShape(desc, groups, first, count);
  NIBBLE_CHECK_GE(num_ranks, 1);
  const GroupLayout layout = LayoutOf(desc, count);
  const auto decode = KernelsOf(isa).decode;
  ForRuns(
      groups, first, count,
      [&](int64_t offset, int64_t index, int64_t num) {
        decode(layout, pieces, num_ranks, index, num, x + offset);
      },
      [&](int64_t offset, int64_t index, int64_t size) {
        float padded[kMaxGroupSize];
        decode(layout, pieces, num_ranks, index, 1, padded);
        std::copy_n(padded, size, x + offset);
      });
}

void ReduceEncoded(const CodecDesc& desc, const uint8_t* const* pieces, int num_ranks,
                   int64_t count, uint8_t* out, Isa isa) {
  NIBBLE_CHECK_GE(num_ranks, 1);
  const GroupLayout layout = LayoutOf(desc, count);
  KernelsOf(isa).reduce(layout, pieces, num_ranks, count, out);
  ClearGaps(desc, layout, count, out);
}

}  // namespace nibble::comm
