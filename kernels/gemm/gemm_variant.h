// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Inside the gemm folder: what a variant is to the catalog. A new instruction set adds its sources
// and its lines in gemm_catalog.cc.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "kernels/gemm/gemm.h"

namespace nibble::kernels {

struct GemmVariant;  // below

// Weights packed by a variant. Immutable after the pack function returns.
class GemmWeight : public PackedWeight {
 public:
  GemmWeight(const GemmVariant& variant, const GemmDesc& desc) : variant_(variant), desc_(desc) {}
  const GemmDesc& desc() const final { return desc_; }
  Isa isa() const final;
  std::string variant_name() const final;
  virtual void Multiply(const GemmArgs& args, ThreadPool* pool) const = 0;

 protected:
  const GemmVariant& variant_;  // in the catalog, which lives for the whole process
  const GemmDesc desc_;
};

// Checked input of a pack function: rows of `storage`, converted to desc.storage while packing.
struct DenseSource {
  const void* weights;  // [n, k], contiguous
  DType storage;
};

// Checked input of a pack function: the weight and, for the integer forms, its scales.
struct Int4Source {
  const Int4Weight& weight;
  std::vector<int16_t> integers;  // [n, num_groups] S; empty for kFloat
  std::vector<float> channel;     // [n] c; empty for kFloat
};

struct DenseKernels;  // gemm_kernels.h
struct Int4Kernels;
struct Int8Kernels;

template <typename Source>
using PackFunction = std::unique_ptr<GemmWeight> (*)(const GemmVariant&, const GemmDesc&,
                                                     const Source&, ThreadPool*);

struct GemmVariant {
  std::string_view name;
  Isa isa = Isa::kRef;
  WeightFormat format = WeightFormat::kDense;
  DType storage = DType::kU8;                // kDense
  ScaleForm scale_form = ScaleForm::kFloat;  // kW4A8
  // The one of the variant's format.
  PackFunction<DenseSource> pack_dense = nullptr;
  PackFunction<Int4Source> pack_int4 = nullptr;
  PackFunction<Int8Weight> pack_int8 = nullptr;
  // The inner loops and their panel width, for variants that share the panel layouts.
  const DenseKernels* dense_kernels = nullptr;
  const Int4Kernels* int4_kernels = nullptr;
  const Int8Kernels* int8_kernels = nullptr;
};

// The variant that runs `desc` on a machine of `isa`: the highest one not above it. Pure; null only
// for a storage type that no variant has.
const GemmVariant* ChooseVariant(const GemmDesc& desc, Isa isa);

// Pack functions by family.
std::unique_ptr<GemmWeight> PackDenseRef(const GemmVariant&, const GemmDesc&, const DenseSource&,
                                         ThreadPool*);
std::unique_ptr<GemmWeight> PackInt4Ref(const GemmVariant&, const GemmDesc&, const Int4Source&,
                                        ThreadPool*);
std::unique_ptr<GemmWeight> PackInt8Ref(const GemmVariant&, const GemmDesc&, const Int8Weight&,
                                        ThreadPool*);
std::unique_ptr<GemmWeight> PackInt4FloatRef(const GemmVariant&, const GemmDesc&, const Int4Source&,
                                             ThreadPool*);
std::unique_ptr<GemmWeight> PackInt4FloatPanels(const GemmVariant&, const GemmDesc&,
                                                const Int4Source&, ThreadPool*);
std::unique_ptr<GemmWeight> PackDensePanels(const GemmVariant&, const GemmDesc&, const DenseSource&,
                                            ThreadPool*);
std::unique_ptr<GemmWeight> PackInt4Panels(const GemmVariant&, const GemmDesc&, const Int4Source&,
                                           ThreadPool*);
std::unique_ptr<GemmWeight> PackInt8Panels(const GemmVariant&, const GemmDesc&, const Int8Weight&,
                                           ThreadPool*);

}  // namespace nibble::kernels
