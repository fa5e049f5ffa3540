// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Inside the gemm folder: what a variant is to the catalog. A new instruction set adds its sources
// and its lines in gemm_catalog.cc.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/gemm/gemm.h"

namespace nibble::kernels {

struct GemmVariant;  // below

// The loops around the kernels: those of one take the products of many weights at once, of
// different formats too.
enum class GemmLoops { kRef, kIntegerPanels, kFloatPanels, kTiles };
inline constexpr GemmLoops kAllGemmLoops[] = {GemmLoops::kRef, GemmLoops::kIntegerPanels,
                                              GemmLoops::kFloatPanels, GemmLoops::kTiles};

// Weights packed by a variant. Immutable after the pack function returns.
class GemmWeight : public PackedWeight {
 public:
  GemmWeight(GemmLoops loops, const GemmVariant& variant, const GemmDesc& desc)
      : variant_(variant), desc_(desc), loops_(loops) {}
  const GemmDesc& desc() const final { return desc_; }
  Isa isa() const final;
  std::string variant_name() const final;
  GemmLoops loops() const { return loops_; }
  // What multiplies `rows` rows by this weight: itself, or a form of it for few rows.
  virtual const GemmWeight& ForRows(int64_t /*rows*/) const { return *this; }

 protected:
  const GemmVariant& variant_;  // in the catalog, which lives for the whole process
  const GemmDesc desc_;

 private:
  const GemmLoops loops_;
};

// One product: a weight times rows of A.
struct GemmJob {
  const GemmWeight* weight;
  GemmArgs args;
  const int32_t* a_rows;  // [args.m] row i of D reads row a_rows[i] of A; null: row i
  int64_t RowOfA(int64_t i) const { return a_rows == nullptr ? i : int64_t{a_rows[i]}; }
};

// Computes all jobs, at least one, of weights with these loops and with args.m and n above 0.
void MultiplyJobs(GemmLoops loops, std::span<const GemmJob> jobs, ThreadPool* pool);
// The same by loops.
void MultiplyRef(std::span<const GemmJob> jobs, ThreadPool* pool);
void MultiplyIntegerPanels(std::span<const GemmJob> jobs, ThreadPool* pool);
void MultiplyFloatPanels(std::span<const GemmJob> jobs, ThreadPool* pool);
void MultiplyTiles(std::span<const GemmJob> jobs, ThreadPool* pool);

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

// UNIMPLEMENTED for what dense weights cannot be converted from.
absl::Status CheckDenseSource(DType storage);
// The scales of a valid weight in the form asked for; errors as PackInt4. Refers to `weight`.
absl::StatusOr<Int4Source> MakeInt4Source(const Int4Weight& weight, ScaleForm form);

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
