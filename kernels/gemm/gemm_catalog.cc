// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/gemm_variant.h"

namespace nibble::kernels {
namespace {

constexpr auto kDense = WeightFormat::kDense;
constexpr auto kW4A8 = WeightFormat::kW4A8;
constexpr auto kNoForm = ScaleForm::kFloat;  // not looked at
constexpr auto kNoStorage = DType::kU8;      // not looked at

// Every variant, by rising instruction set.
constexpr GemmVariant kCatalog[] = {
    {"dense_f32_ref", Isa::kRef, kDense, DType::kF32, kNoForm, PackDenseRef, nullptr},
    {"dense_bf16_ref", Isa::kRef, kDense, DType::kBf16, kNoForm, PackDenseRef, nullptr},
    {"dense_f16_ref", Isa::kRef, kDense, DType::kF16, kNoForm, PackDenseRef, nullptr},
    {"w4a8_folded_ref", Isa::kRef, kW4A8, kNoStorage, ScaleForm::kFolded, nullptr, PackInt4Ref},
    {"w4a8_integer_ref", Isa::kRef, kW4A8, kNoStorage, ScaleForm::kInteger, nullptr, PackInt4Ref},
    {"w4a8_float_ref", Isa::kRef, kW4A8, kNoStorage, ScaleForm::kFloat, nullptr, PackInt4Ref},
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
