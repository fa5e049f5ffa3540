// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Packs weights for whatever will multiply by them: whoever loads a model need not know what that
// is.
#pragma once

#include <cstdint>
#include <memory>

#include "base/cpu_features.h"
#include "base/dtype.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "kernels/gemm/gemm.h"

namespace nibble::kernels {

// As the functions of the same names in gemm.h, whose errors these have too. UNIMPLEMENTED, naming
// what is missing, for a form that the device does not have. Thread-safe.
class WeightPacker {
 public:
  virtual ~WeightPacker() = default;
  virtual absl::StatusOr<std::unique_ptr<PackedWeight>> PackDense(const void* weights,
                                                                  DType storage, int64_t n,
                                                                  int64_t k, DType target,
                                                                  ThreadPool* pool) const = 0;
  virtual absl::StatusOr<std::unique_ptr<PackedWeight>> PackInt4(const Int4Weight& weight,
                                                                 ScaleForm form,
                                                                 ThreadPool* pool) const = 0;
  virtual absl::StatusOr<std::unique_ptr<PackedWeight>> PackInt8(const Int8Weight& weight,
                                                                 ThreadPool* pool) const = 0;
  virtual absl::StatusOr<std::unique_ptr<PackedWeight>> PackInt4Float(const Int4Weight& weight,
                                                                      ThreadPool* pool) const = 0;
};

// For kernels::Run and RunGrouped of one instruction set.
class CpuWeightPacker final : public WeightPacker {
 public:
  explicit CpuWeightPacker(Isa isa) : isa_(isa) {}
  absl::StatusOr<std::unique_ptr<PackedWeight>> PackDense(const void* weights, DType storage,
                                                          int64_t n, int64_t k, DType target,
                                                          ThreadPool* pool) const override;
  absl::StatusOr<std::unique_ptr<PackedWeight>> PackInt4(const Int4Weight& weight, ScaleForm form,
                                                         ThreadPool* pool) const override;
  absl::StatusOr<std::unique_ptr<PackedWeight>> PackInt8(const Int8Weight& weight,
                                                         ThreadPool* pool) const override;
  absl::StatusOr<std::unique_ptr<PackedWeight>> PackInt4Float(const Int4Weight& weight,
                                                              ThreadPool* pool) const override;

 private:
  const Isa isa_;
};

}  // namespace nibble::kernels
