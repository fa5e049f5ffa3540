// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/amx_gemm.h"
#include "kernels/gemm/amx_kernels.h"
#include "kernels/gemm/gemm_kernels.h"
#include "kernels/gemm/gemm_variant.h"

namespace nibble::kernels {
namespace {

// Inner loops. Fields: panel, lanes or tile rows as gemm_kernels.h names them.
constexpr DenseKernels kDenseF32Avx2 = {32, 8, 3, avx2::DenseF32};
constexpr DenseKernels kDenseBf16Avx2 = {32, 8, 3, avx2::DenseBf16};
constexpr DenseKernels kDenseF16Avx2 = {32, 8, 3, avx2::DenseF16};
constexpr DenseKernels kInt4FloatAvx2 = {32, 8, 3, avx2::DenseInt4};
constexpr DenseKernels kDenseF32Avx512 = {64, 16, 6, avx512vnni::DenseF32};
constexpr DenseKernels kDenseBf16Avx512 = {64, 16, 6, avx512vnni::DenseBf16};
constexpr DenseKernels kDenseF16Avx512 = {64, 16, 6, avx512vnni::DenseF16};

constexpr DenseKernels kInt4FloatAvx512 = {64, 16, 6, avx512vnni::DenseInt4};

constexpr Int4Kernels kIntegerAvx2 = {16, avx2::kMaxTileRows, avx2::Int4Integer};
constexpr Int4Kernels kFloatAvx2 = {16, avx2::kMaxTileRows, avx2::Int4Float};
constexpr Int4Kernels kFoldedAvx512 = {32, avx512vnni::kMaxTileRows, avx512vnni::Int4Folded};
constexpr Int4Kernels kIntegerAvx512 = {32, avx512vnni::kMaxTileRows, avx512vnni::Int4Integer};
constexpr Int4Kernels kFloatAvx512 = {32, avx512vnni::kMaxTileRows, avx512vnni::Int4Float};
constexpr Int8Kernels kInt8Avx2 = {16, avx2::kMaxTileRows, false, avx2::Int8};
constexpr Int8Kernels kInt8Avx512 = {32, avx512vnni::kMaxTileRows, true, avx512vnni::Int8};

// AMX: a tile of 16 rows takes as long however many of them are used. By published instruction
// costs, not measured: up to 8 rows vpdpbusd (16 cycles a row and 64 k) is as fast as unpacking for
// tiles (80 cycles and 32 for the products).
constexpr Int4Kernels kFoldedAmx = {32, avx512vnni::kMaxTileRows, avx512vnni::Int4Folded, 8,
                                    amx::Int4Folded};
constexpr Int4Kernels kIntegerAmx = {32, avx512vnni::kMaxTileRows, avx512vnni::Int4Integer, 8,
                                     amx::Int4Integer};
constexpr Int4Kernels kFloatAmx = {32, avx512vnni::kMaxTileRows, avx512vnni::Int4Float, 8,
                                   amx::Int4Float};

// Lines of the catalog, one function per family of layouts.
constexpr GemmVariant DenseRef(std::string_view name, DType storage) {
  return {.name = name, .storage = storage, .pack_dense = PackDenseRef};
}
constexpr GemmVariant Int4Ref(std::string_view name, ScaleForm form) {
  return {
      .name = name, .format = WeightFormat::kW4A8, .scale_form = form, .pack_int4 = PackInt4Ref};
}
constexpr GemmVariant Int8Ref(std::string_view name) {
  return {.name = name, .format = WeightFormat::kW8A8, .pack_int8 = PackInt8Ref};
}
constexpr GemmVariant Int4FloatRef(std::string_view name) {
  return {.name = name, .format = WeightFormat::kW4A16, .pack_int4 = PackInt4FloatRef};
}
constexpr GemmVariant Int4Float(std::string_view name, Isa isa, const DenseKernels& kernels) {
  return {.name = name,
          .isa = isa,
          .format = WeightFormat::kW4A16,
          .pack_int4 = PackInt4FloatPanels,
          .dense_kernels = &kernels};
}
constexpr GemmVariant Dense(std::string_view name, Isa isa, DType storage,
                            const DenseKernels& kernels) {
  return {.name = name,
          .isa = isa,
          .storage = storage,
          .pack_dense = PackDensePanels,
          .dense_kernels = &kernels};
}
constexpr GemmVariant Int4(std::string_view name, Isa isa, ScaleForm form,
                           const Int4Kernels& kernels) {
  return {.name = name,
          .isa = isa,
          .format = WeightFormat::kW4A8,
          .scale_form = form,
          .pack_int4 = PackInt4Panels,
          .int4_kernels = &kernels};
}

constexpr GemmVariant Int8(std::string_view name, Isa isa, const Int8Kernels& kernels) {
  return {.name = name,
          .isa = isa,
          .format = WeightFormat::kW8A8,
          .pack_int8 = PackInt8Panels,
          .int8_kernels = &kernels};
}

// Every variant. To add one, add its line (and its pack function, where the layout is new).
constexpr GemmVariant kCatalog[] = {
    DenseRef("dense_f32_ref", DType::kF32),
    DenseRef("dense_bf16_ref", DType::kBf16),
    DenseRef("dense_f16_ref", DType::kF16),
    Int4Ref("w4a8_folded_ref", ScaleForm::kFolded),
    Int4Ref("w4a8_integer_ref", ScaleForm::kInteger),
    Int4Ref("w4a8_float_ref", ScaleForm::kFloat),
    Int8Ref("w8a8_ref"),
    Int4FloatRef("w4a16_ref"),

    Dense("dense_f32_avx2", Isa::kAvx2, DType::kF32, kDenseF32Avx2),
    Dense("dense_bf16_avx2", Isa::kAvx2, DType::kBf16, kDenseBf16Avx2),
    Dense("dense_f16_avx2", Isa::kAvx2, DType::kF16, kDenseF16Avx2),

    // Folding would saturate vpmaddubsw (int4_avx2.cc); the sums are the same either way.
    Int4("w4a8_folded_avx2", Isa::kAvx2, ScaleForm::kFolded, kIntegerAvx2),
    Int4("w4a8_integer_avx2", Isa::kAvx2, ScaleForm::kInteger, kIntegerAvx2),
    Int4("w4a8_float_avx2", Isa::kAvx2, ScaleForm::kFloat, kFloatAvx2),
    Int8("w8a8_avx2", Isa::kAvx2, kInt8Avx2),
    Int4Float("w4a16_avx2", Isa::kAvx2, kInt4FloatAvx2),

    Dense("dense_f32_avx512vnni", Isa::kAvx512Vnni, DType::kF32, kDenseF32Avx512),
    Dense("dense_bf16_avx512vnni", Isa::kAvx512Vnni, DType::kBf16, kDenseBf16Avx512),
    Dense("dense_f16_avx512vnni", Isa::kAvx512Vnni, DType::kF16, kDenseF16Avx512),
    Int4("w4a8_folded_avx512vnni", Isa::kAvx512Vnni, ScaleForm::kFolded, kFoldedAvx512),
    Int4("w4a8_integer_avx512vnni", Isa::kAvx512Vnni, ScaleForm::kInteger, kIntegerAvx512),
    Int4("w4a8_float_avx512vnni", Isa::kAvx512Vnni, ScaleForm::kFloat, kFloatAvx512),
    Int8("w8a8_avx512vnni", Isa::kAvx512Vnni, kInt8Avx512),
    Int4Float("w4a16_avx512vnni", Isa::kAvx512Vnni, kInt4FloatAvx512),

    // float32, float16 and W4A16 weights have no tiles: they run as on AVX-512.
    {.name = "dense_bf16_amx",
     .isa = Isa::kAmx,
     .storage = DType::kBf16,
     .pack_dense = PackDenseAmx},
    Int4("w4a8_folded_amx", Isa::kAmx, ScaleForm::kFolded, kFoldedAmx),
    Int4("w4a8_integer_amx", Isa::kAmx, ScaleForm::kInteger, kIntegerAmx),
    Int4("w4a8_float_amx", Isa::kAmx, ScaleForm::kFloat, kFloatAmx),
    {.name = "w8a8_amx", .isa = Isa::kAmx, .format = WeightFormat::kW8A8, .pack_int8 = PackInt8Amx},
};

// True when `variant` serves the format of `desc`, on whatever instruction set.
bool Serves(const GemmVariant& variant, const GemmDesc& desc) {
  if (variant.format != desc.format) return false;
  switch (desc.format) {
    case WeightFormat::kDense:
      return variant.storage == desc.storage;
    case WeightFormat::kW4A8:
      return variant.scale_form == desc.scale_form;
    case WeightFormat::kW8A8:
    case WeightFormat::kW4A16:
      return true;
  }
  return false;
}

}  // namespace

Isa GemmWeight::isa() const { return variant_.isa; }

std::string GemmWeight::variant_name() const { return std::string(variant_.name); }

const GemmVariant* ChooseVariant(const GemmDesc& desc, Isa isa) {
  const GemmVariant* best = nullptr;
  for (const GemmVariant& variant : kCatalog) {
    if (variant.isa > isa || !Serves(variant, desc)) continue;
    if (best == nullptr || variant.isa > best->isa) best = &variant;
  }
  return best;
}

}  // namespace nibble::kernels
