// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/weight_packer.h"

namespace nibble::kernels {

absl::StatusOr<std::unique_ptr<PackedWeight>> CpuWeightPacker::PackDense(const void* weights,
                                                                         DType storage, int64_t n,
                                                                         int64_t k, DType target,
                                                                         ThreadPool* pool) const {
  return kernels::PackDense(weights, storage, n, k, target, isa_, pool);
}

absl::StatusOr<std::unique_ptr<PackedWeight>> CpuWeightPacker::PackInt4(const Int4Weight& weight,
                                                                        ScaleForm form,
                                                                        ThreadPool* pool) const {
  return kernels::PackInt4(weight, form, isa_, pool);
}

absl::StatusOr<std::unique_ptr<PackedWeight>> CpuWeightPacker::PackInt8(const Int8Weight& weight,
                                                                        ThreadPool* pool) const {
  return kernels::PackInt8(weight, isa_, pool);
}

absl::StatusOr<std::unique_ptr<PackedWeight>> CpuWeightPacker::PackInt4Float(
    const Int4Weight& weight, ThreadPool* pool) const {
  return kernels::PackInt4Float(weight, isa_, pool);
}

}  // namespace nibble::kernels
