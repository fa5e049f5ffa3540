// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/gemm.h"

#include <limits>
#include <utility>

#include "kernels/gemm/gemm_kernels.h"
#include "kernels/gemm/gemm_variant.h"
#include "kernels/gemm/integer_scales.h"

namespace nibble::kernels {
namespace {

constexpr int64_t kMaxDimension = int64_t{1} << 30;
// |sum_k a8 * w8| <= 127 * 128 * k, with |w8| = |q * S| <= 8 * 16 or an int8, stays below 2^31 up
// to here.
constexpr int64_t kMaxInt8K = std::numeric_limits<int32_t>::max() / (127 * 128);

std::string_view ToString(ScaleForm form) {
  switch (form) {
    case ScaleForm::kFolded:
      return "folded";
    case ScaleForm::kInteger:
      return "integer";
    case ScaleForm::kFloat:
      return "float";
  }
  return "unknown";
}

absl::Status CheckGroupSize(const GemmDesc& desc) {
  if (desc.group_size < 1 || desc.group_size > kMaxDimension) {
    return InvalidArgument("gemm: group_size is {}, the range is 1..{}", desc.group_size,
                           kMaxDimension);
  }
  return absl::OkStatus();
}

absl::Status CheckW4A8(const GemmDesc& desc) {
  NIBBLE_RETURN_IF_ERROR(CheckGroupSize(desc));
  if (desc.group_size < desc.k && desc.group_size > kMaxPackedGroup &&
      desc.group_size % kMaxPackedGroup != 0) {
    return Unimplemented(
        "gemm: group_size {} is neither at most {}, nor a multiple of it, nor the whole k = {}",
        desc.group_size, kMaxPackedGroup, desc.k);
  }
  if (desc.scale_form == ScaleForm::kFolded && desc.k > kMaxInt8K) {
    return Unimplemented("gemm: k is {}, folded scales keep int32 sums up to k = {}", desc.k,
                         kMaxInt8K);
  }
  return absl::OkStatus();
}

}  // namespace

std::string ToString(const GemmDesc& desc) {
  switch (desc.format) {
    case WeightFormat::kDense:
      return fmt::format("dense {} n={} k={}", ToString(desc.storage), desc.n, desc.k);
    case WeightFormat::kW4A8:
      return fmt::format("w4a8 {} n={} k={} group={}", ToString(desc.scale_form), desc.n, desc.k,
                         desc.group_size);
    case WeightFormat::kW8A8:
      return fmt::format("w8a8 n={} k={}", desc.n, desc.k);
    case WeightFormat::kW4A16:
      return fmt::format("w4a16 n={} k={} group={}", desc.n, desc.k, desc.group_size);
  }
  return "unknown";
}

absl::Status Supports(const GemmDesc& desc, Isa isa) {
  if (desc.n < 0 || desc.n > kMaxDimension) {
    return InvalidArgument("gemm: n is {}, the range is 0..{}", desc.n, kMaxDimension);
  }
  if (desc.k < 1 || desc.k > kMaxDimension) {
    return InvalidArgument("gemm: k is {}, the range is 1..{}", desc.k, kMaxDimension);
  }
  if (desc.format == WeightFormat::kW4A8) NIBBLE_RETURN_IF_ERROR(CheckW4A8(desc));
  if (desc.format == WeightFormat::kW8A8 && desc.k > kMaxInt8K) {
    return Unimplemented("gemm: k is {}, 8-bit weights keep int32 sums up to k = {}", desc.k,
                         kMaxInt8K);
  }
  if (desc.format == WeightFormat::kW4A16) NIBBLE_RETURN_IF_ERROR(CheckGroupSize(desc));
  if (ChooseVariant(desc, isa) == nullptr) {
    return Unimplemented("gemm: no {} variant for {}", ToString(isa), ToString(desc));
  }
  return absl::OkStatus();
}

absl::Status CheckDenseSource(DType storage) {
  if (storage != DType::kF32 && storage != DType::kBf16 && storage != DType::kF16) {
    return Unimplemented("gemm: cannot pack weights stored as {}", ToString(storage));
  }
  return absl::OkStatus();
}

absl::StatusOr<Int4Source> MakeInt4Source(const Int4Weight& weight, ScaleForm form) {
  Int4Source source = {weight, {}, {}};
  switch (form) {
    case ScaleForm::kFolded: {
      NIBBLE_ASSIGN_OR_RETURN(FoldedScales scales, FindFoldedScales(weight));
      source.integers.assign(scales.integers.begin(), scales.integers.end());
      source.channel = std::move(scales.channel);
      break;
    }
    case ScaleForm::kInteger: {
      NIBBLE_ASSIGN_OR_RETURN(IntegerScales scales, FindIntegerScales(weight));
      source.integers = std::move(scales.integers);
      source.channel = std::move(scales.channel);
      break;
    }
    case ScaleForm::kFloat:
      break;
  }
  return source;
}

absl::StatusOr<std::unique_ptr<PackedWeight>> PackDense(const void* weights, DType storage,
                                                        int64_t n, int64_t k, DType target, Isa isa,
                                                        ThreadPool* pool) {
  const GemmDesc desc = {.format = WeightFormat::kDense, .storage = target, .n = n, .k = k};
  NIBBLE_RETURN_IF_ERROR(Supports(desc, isa));
  NIBBLE_RETURN_IF_ERROR(CheckDenseSource(storage));
  const GemmVariant& variant = *ChooseVariant(desc, isa);
  return variant.pack_dense(variant, desc, {weights, storage}, pool);
}

absl::StatusOr<std::unique_ptr<PackedWeight>> PackInt4(const Int4Weight& weight, ScaleForm form,
                                                       Isa isa, ThreadPool* pool) {
  const GemmDesc desc = {.format = WeightFormat::kW4A8,
                         .scale_form = form,
                         .n = weight.n,
                         .k = weight.k,
                         .group_size = weight.group_size};
  NIBBLE_RETURN_IF_ERROR(weight.Validate());
  NIBBLE_RETURN_IF_ERROR(Supports(desc, isa));
  NIBBLE_ASSIGN_OR_RETURN(const Int4Source source, MakeInt4Source(weight, form));
  const GemmVariant& variant = *ChooseVariant(desc, isa);
  return variant.pack_int4(variant, desc, source, pool);
}

absl::StatusOr<std::unique_ptr<PackedWeight>> PackInt8(const Int8Weight& weight, Isa isa,
                                                       ThreadPool* pool) {
  const GemmDesc desc = {.format = WeightFormat::kW8A8, .n = weight.n, .k = weight.k};
  NIBBLE_RETURN_IF_ERROR(weight.Validate());
  NIBBLE_RETURN_IF_ERROR(Supports(desc, isa));
  const GemmVariant& variant = *ChooseVariant(desc, isa);
  return variant.pack_int8(variant, desc, weight, pool);
}

absl::StatusOr<std::unique_ptr<PackedWeight>> PackInt4Float(const Int4Weight& weight, Isa isa,
                                                            ThreadPool* pool) {
  const GemmDesc desc = {.format = WeightFormat::kW4A16,
                         .n = weight.n,
                         .k = weight.k,
                         .group_size = weight.group_size};
  NIBBLE_RETURN_IF_ERROR(weight.Validate());
  NIBBLE_RETURN_IF_ERROR(Supports(desc, isa));
  const GemmVariant& variant = *ChooseVariant(desc, isa);
  return variant.pack_int4(variant, desc, {weight, {}, {}}, pool);
}

void Run(const PackedWeight& weight, const GemmArgs& args, ThreadPool* pool) {
  if (args.m == 0 || weight.desc().n == 0) return;
  // Only pack functions of the catalog make packed weights.
  const GemmWeight& by_rows = static_cast<const GemmWeight&>(weight).ForRows(args.m);
  const GemmJob job = {.weight = &by_rows, .args = args, .a_rows = nullptr};
  MultiplyJobs(by_rows.loops(), {&job, 1}, pool);
}

void MultiplyJobs(GemmLoops loops, std::span<const GemmJob> jobs, ThreadPool* pool) {
  switch (loops) {
    case GemmLoops::kRef:
      return MultiplyRef(jobs, pool);
    case GemmLoops::kIntegerPanels:
      return MultiplyIntegerPanels(jobs, pool);
    case GemmLoops::kFloatPanels:
      return MultiplyFloatPanels(jobs, pool);
    case GemmLoops::kTiles:
      return MultiplyTiles(jobs, pool);
  }
}

}  // namespace nibble::kernels
