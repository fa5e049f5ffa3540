// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/gemm_kernels.h"
#include "kernels/gemm/gemm_variant.h"

namespace nibble::kernels {
namespace {

constexpr auto kDense = WeightFormat::kDense;
constexpr auto kW4A8 = WeightFormat::kW4A8;
constexpr auto kNoForm = ScaleForm::kFloat;  // not looked at
constexpr auto kNoStorage = DType::kU8;      // not looked at

// Inner loops. Fields: panel, lanes or tile rows as gemm_kernels.h names them.
constexpr DenseKernels kDenseF32Avx2 = {32, 8, 3, avx2::DenseF32};
constexpr DenseKernels kDenseBf16Avx2 = {32, 8, 3, avx2::DenseBf16};
constexpr DenseKernels kDenseF16Avx2 = {32, 8, 3, avx2::DenseF16};
constexpr DenseKernels kDenseF32Avx512 = {64, 16, 6, avx512vnni::DenseF32};
constexpr DenseKernels kDenseBf16Avx512 = {64, 16, 6, avx512vnni::DenseBf16};
constexpr DenseKernels kDenseF16Avx512 = {64, 16, 6, avx512vnni::DenseF16};

constexpr Int4Kernels kIntegerAvx2 = {
    16, 3, 6, true, avx2::Int4FewRowsInteger, avx2::Int4ManyRowsInteger};
constexpr Int4Kernels kFloatAvx2 = {
    16, 3, 6, true, avx2::Int4FewRowsFloat, avx2::Int4ManyRowsFloat};
constexpr Int4Kernels kFoldedAvx512 = {
    32, 12, 12, false, avx512vnni::Int4FewRowsInteger, avx512vnni::Int4ManyRowsFolded};
constexpr Int4Kernels kIntegerAvx512 = {
    32, 12, 12, true, avx512vnni::Int4FewRowsInteger, avx512vnni::Int4ManyRowsInteger};
constexpr Int4Kernels kFloatAvx512 = {
    32, 12, 12, true, avx512vnni::Int4FewRowsFloat, avx512vnni::Int4ManyRowsFloat};

constexpr GemmVariant Dense(std::string_view name, Isa isa, DType storage,
                            const DenseKernels& kernels) {
  return {name,     isa,    WeightFormat::kDense, storage, kNoForm, PackDensePanels, nullptr,
          &kernels, nullptr};
}
constexpr GemmVariant Int4(std::string_view name, Isa isa, ScaleForm form,
                           const Int4Kernels& kernels) {
  return {name,    isa,     WeightFormat::kW4A8, kNoStorage, form, nullptr, PackInt4Panels,
          nullptr, &kernels};
}

// Every variant. To add one, add its line (and its pack function, where the layout is new).
constexpr GemmVariant kCatalog[] = {
    {"dense_f32_ref", Isa::kRef, kDense, DType::kF32, kNoForm, PackDenseRef, nullptr},
    {"dense_bf16_ref", Isa::kRef, kDense, DType::kBf16, kNoForm, PackDenseRef, nullptr},
    {"dense_f16_ref", Isa::kRef, kDense, DType::kF16, kNoForm, PackDenseRef, nullptr},
    {"w4a8_folded_ref", Isa::kRef, kW4A8, kNoStorage, ScaleForm::kFolded, nullptr, PackInt4Ref},
    {"w4a8_integer_ref", Isa::kRef, kW4A8, kNoStorage, ScaleForm::kInteger, nullptr, PackInt4Ref},
    {"w4a8_float_ref", Isa::kRef, kW4A8, kNoStorage, ScaleForm::kFloat, nullptr, PackInt4Ref},

    Dense("dense_f32_avx2", Isa::kAvx2, DType::kF32, kDenseF32Avx2),
    Dense("dense_bf16_avx2", Isa::kAvx2, DType::kBf16, kDenseBf16Avx2),
    Dense("dense_f16_avx2", Isa::kAvx2, DType::kF16, kDenseF16Avx2),
    // Folding would saturate vpmaddubsw (int4_avx2.cc); the sums are the same either way.
    Int4("w4a8_folded_avx2", Isa::kAvx2, ScaleForm::kFolded, kIntegerAvx2),
    Int4("w4a8_integer_avx2", Isa::kAvx2, ScaleForm::kInteger, kIntegerAvx2),
    Int4("w4a8_float_avx2", Isa::kAvx2, ScaleForm::kFloat, kFloatAvx2),

    Dense("dense_f32_avx512vnni", Isa::kAvx512Vnni, DType::kF32, kDenseF32Avx512),
    Dense("dense_bf16_avx512vnni", Isa::kAvx512Vnni, DType::kBf16, kDenseBf16Avx512),
    Dense("dense_f16_avx512vnni", Isa::kAvx512Vnni, DType::kF16, kDenseF16Avx512),
    Int4("w4a8_folded_avx512vnni", Isa::kAvx512Vnni, ScaleForm::kFolded, kFoldedAvx512),
    Int4("w4a8_integer_avx512vnni", Isa::kAvx512Vnni, ScaleForm::kInteger, kIntegerAvx512),
    Int4("w4a8_float_avx512vnni", Isa::kAvx512Vnni, ScaleForm::kFloat, kFloatAvx512),
};

}  // namespace

Isa GemmWeight::isa() const { return variant_.isa; }

std::string GemmWeight::variant_name() const { return std::string(variant_.name); }

const GemmVariant* ChooseVariant(const GemmDesc& desc, Isa isa) {
  const GemmVariant* best = nullptr;
  for (const GemmVariant& variant : kCatalog) {
    if (variant.format != desc.format || variant.isa > isa) continue;
    const bool matches = desc.format == WeightFormat::kDense
                             ? variant.storage == desc.storage
                             : variant.scale_form == desc.scale_form;
    if (matches && (best == nullptr || variant.isa > best->isa)) best = &variant;
  }
  return best;
}

}  // namespace nibble::kernels
