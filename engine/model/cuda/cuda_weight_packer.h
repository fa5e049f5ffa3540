// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Packs weights and moves them to a device: kernels/gemm/weight_packer.h.
#pragma once

#include <memory>

#include "kernels/gemm/weight_packer.h"

namespace nibble::engine {

class CudaWeightPacker final : public kernels::WeightPacker {
 public:
  explicit CudaWeightPacker(int device) : device_(device) {}

  absl::StatusOr<std::unique_ptr<kernels::PackedWeight>> PackDense(const void* weights,
                                                                   DType storage, int64_t n,
                                                                   int64_t k, DType target,
                                                                   ThreadPool* pool) const override;
  absl::StatusOr<std::unique_ptr<kernels::PackedWeight>> PackInt4(const kernels::Int4Weight& weight,
                                                                  kernels::ScaleForm form,
                                                                  ThreadPool* pool) const override;
  absl::StatusOr<std::unique_ptr<kernels::PackedWeight>> PackInt8(const kernels::Int8Weight& weight,
                                                                  ThreadPool* pool) const override;
  // UNIMPLEMENTED.
  absl::StatusOr<std::unique_ptr<kernels::PackedWeight>> PackInt4Float(
      const kernels::Int4Weight& weight, ThreadPool* pool) const override;

 private:
  const int device_;
};

}  // namespace nibble::engine
