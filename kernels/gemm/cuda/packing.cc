// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/cuda/packing.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/gemm/dense_elements.h"
#include "kernels/gemm/gemm_variant.h"
#include "kernels/gemm/panel_loops.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kCodeOfZero = 8;

template <typename T>
T* At(std::vector<uint8_t>* bytes, int64_t offset) {
  return reinterpret_cast<T*>(bytes->data() + offset);
}

// The zero point of a stored group, also of those beyond n and k.
int ZeroOfGroup(const Int4Weight& weight, const WeightLayout& layout, int64_t row, int64_t group) {
  const int64_t k = group << layout.group_shift;
  return row < weight.n && k < weight.k ? weight.Zero(row, k) : kCodeOfZero;
}

void PackInt4Row(const Int4Source& source, int64_t row, HostWeight* packed) {
  const Int4Weight& weight = source.weight;
  const WeightLayout& layout = packed->layout;
  for (int64_t k = 0; k < layout.padded_k; ++k) {
    // What is beyond n and k weighs nothing.
    const int code = row < weight.n && k < weight.k
                         ? weight.Code(row, k)
                         : ZeroOfGroup(weight, layout, row, k >> layout.group_shift);
    const CodePosition at = Int4Position(layout, row, k);
    uint8_t& byte = packed->codes[static_cast<size_t>(at.byte)];
    byte = static_cast<uint8_t>(byte | (code << at.shift));
  }
}

void PackScalesRow(const Int4Source& source, int64_t row, HostWeight* packed) {
  const Int4Weight& weight = source.weight;
  const WeightLayout& layout = packed->layout;
  const int64_t source_groups = weight.num_groups();
  const auto* integers =
      source.integers.empty() ? nullptr : source.integers.data() + row * source_groups;
  int offset = 0;
  if (packed->desc.scale_form == ScaleForm::kInteger) {
    // Scales of both signs have magnitudes up to 127, of one sign 0..255.
    if (std::any_of(integers, integers + source_groups, [](int16_t s) { return s < 0; })) {
      offset = -128;
    }
    At<int32_t>(&packed->scales, layout.integer_offset)[row] = offset;
  }
  if (integers != nullptr) {
    At<float>(&packed->scales, layout.channel_offset)[row] =
        source.channel[static_cast<size_t>(row)];
  }
  for (int64_t g = 0; g < layout.num_groups; ++g) {
    const int64_t k = g << layout.group_shift;
    if (k >= weight.k) break;
    const auto from = static_cast<size_t>(row * source_groups + k / weight.group_size);
    const int64_t to = ScaleIndex(layout, row, g);
    if (integers == nullptr) {
      At<float>(&packed->scales, 0)[to] = weight.scales[from];
    } else {
      packed->scales[static_cast<size_t>(to)] =
          static_cast<uint8_t>(source.integers[from] - offset);
    }
    if (packed->has_zero_points) {
      packed->scales[static_cast<size_t>(layout.zeros_offset + to)] =
          static_cast<uint8_t>(ZeroOfGroup(weight, layout, row, g));
    }
  }
}

HostWeight MakeHostWeight(const GemmDesc& desc, bool has_zero_points) {
  HostWeight packed = {.desc = desc,
                       .layout = MakeWeightLayout(desc),
                       .has_zero_points = has_zero_points,
                       .codes = {},
                       .scales = {}};
  const WeightLayout& layout = packed.layout;
  packed.codes.resize(static_cast<size_t>(layout.codes_bytes));
  packed.scales.resize(
      static_cast<size_t>(layout.scales_bytes + (has_zero_points ? layout.zeros_bytes : 0)));
  if (has_zero_points) {
    std::memset(packed.scales.data() + layout.zeros_offset, kCodeOfZero,
                static_cast<size_t>(layout.zeros_bytes));
  }
  return packed;
}

}  // namespace

int GroupShift(const GemmDesc& desc) {
  int shift = 5;  // kStepK
  if (desc.group_size >= desc.k) {
    while ((int64_t{1} << shift) < RoundUp(desc.k, kIntegerStageK)) ++shift;
    return shift;
  }
  if (desc.group_size % kStepK != 0) return -1;
  while (desc.group_size >> shift << shift == desc.group_size) ++shift;
  return shift - 1;
}

WeightLayout MakeWeightLayout(const GemmDesc& desc) {
  WeightLayout layout;
  layout.padded_n = RoundUp(desc.n, kPanelChannels);
  if (desc.format == WeightFormat::kDense) {
    const auto element = static_cast<int64_t>(SizeOf(desc.storage));
    layout.padded_k = RoundUp(desc.k, kStageBytes / element);
    layout.codes_bytes = layout.padded_n * layout.padded_k * element;
    return layout;
  }
  layout.padded_k = RoundUp(desc.k, kIntegerStageK);
  const int64_t channel_bytes = layout.padded_n * 4;
  if (desc.format == WeightFormat::kW8A8) {
    layout.codes_bytes = layout.padded_n * layout.padded_k;
    layout.scales_bytes = channel_bytes;
    return layout;
  }
  layout.codes_bytes = layout.padded_n * layout.padded_k / 2;
  layout.group_shift = GroupShift(desc);
  layout.num_groups = CeilDiv(layout.padded_k, int64_t{1} << layout.group_shift);
  const bool floats = desc.scale_form == ScaleForm::kFloat;
  layout.zeros_bytes = layout.padded_n * layout.num_groups;
  layout.channel_offset = layout.zeros_bytes * (floats ? 4 : 1);
  layout.integer_offset = layout.channel_offset + (floats ? 0 : channel_bytes);
  layout.zeros_offset =
      layout.integer_offset + (desc.scale_form == ScaleForm::kInteger ? channel_bytes : 0);
  layout.scales_bytes = layout.zeros_offset;
  return layout;
}

absl::Status CheckLayout(const GemmDesc& desc) {
  NIBBLE_RETURN_IF_ERROR(kernels::Supports(desc, Isa::kRef));
  if (desc.format == WeightFormat::kW4A16) {
    return Unimplemented("gemm: no CUDA kernel for {}: 4-bit weights take int8 activations",
                         ToString(desc));
  }
  if (desc.format == WeightFormat::kW4A8 && GroupShift(desc) < 0) {
    return Unimplemented(
        "gemm: group_size is {}; CUDA kernels take multiples of {} and groups of all of k = {}",
        desc.group_size, kStepK, desc.k);
  }
  return absl::OkStatus();
}

absl::StatusOr<HostWeight> PackDenseHost(const void* weights, DType storage, int64_t n, int64_t k,
                                         DType target, ThreadPool* pool) {
  const GemmDesc desc = {.format = WeightFormat::kDense, .storage = target, .n = n, .k = k};
  NIBBLE_RETURN_IF_ERROR(CheckLayout(desc));
  NIBBLE_RETURN_IF_ERROR(CheckDenseSource(storage));
  HostWeight packed = MakeHostWeight(desc, false);
  const int64_t stride = packed.layout.padded_k;
  pool->ParallelFor(n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t i = 0; i < k; ++i) {
        StoreElement(LoadElement(weights, storage, row * k + i), target, row * stride + i,
                     packed.codes.data());
      }
    }
  });
  return packed;
}

absl::StatusOr<HostWeight> PackInt4Host(const Int4Weight& weight, ScaleForm form,
                                        ThreadPool* pool) {
  const GemmDesc desc = {.format = WeightFormat::kW4A8,
                         .scale_form = form,
                         .n = weight.n,
                         .k = weight.k,
                         .group_size = weight.group_size};
  NIBBLE_RETURN_IF_ERROR(weight.Validate());
  NIBBLE_RETURN_IF_ERROR(CheckLayout(desc));
  NIBBLE_ASSIGN_OR_RETURN(const Int4Source source, MakeInt4Source(weight, form));
  HostWeight packed = MakeHostWeight(desc, !weight.zero_points.empty());
  const int64_t num_units = packed.layout.padded_n / kUnitChannels;
  pool->ParallelFor(num_units, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin * kUnitChannels; row < end * kUnitChannels; ++row) {
      PackInt4Row(source, row, &packed);
      if (row < weight.n) PackScalesRow(source, row, &packed);
    }
  });
  return packed;
}

absl::StatusOr<HostWeight> PackInt8Host(const Int8Weight& weight, ThreadPool* pool) {
  const GemmDesc desc = {.format = WeightFormat::kW8A8, .n = weight.n, .k = weight.k};
  NIBBLE_RETURN_IF_ERROR(weight.Validate());
  NIBBLE_RETURN_IF_ERROR(CheckLayout(desc));
  HostWeight packed = MakeHostWeight(desc, false);
  pool->ParallelFor(weight.n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int8_t* codes = weight.codes.data() + row * weight.k;
      for (int64_t k = 0; k < weight.k; ++k) {
        packed.codes[static_cast<size_t>(Int8Position(packed.layout, row, k).byte)] =
            static_cast<uint8_t>(codes[k]);
      }
      At<float>(&packed.scales, 0)[row] = weight.scales[static_cast<size_t>(row)];
    }
  });
  return packed;
}

}  // namespace nibble::kernels::cuda
