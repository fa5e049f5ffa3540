// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Weights into the layout of weight_layout.h, on the host: the bytes that are uploaded.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "kernels/gemm/cuda/weight_layout.h"
#include "kernels/gemm/gemm.h"

namespace nibble::kernels::cuda {

struct HostWeight {
  GemmDesc desc;
  WeightLayout layout;
  bool has_zero_points = false;
  std::vector<uint8_t> codes;   // [layout.codes_bytes]
  std::vector<uint8_t> scales;  // [layout.scales_bytes (+ zeros_bytes)]; empty: dense
};

// What any of our kernels on any device can take: the limits of kernels::Supports, and of the
// layout (groups of whole steps).
absl::Status CheckLayout(const GemmDesc& desc);

// Errors as kernels::PackDense, PackInt4 and PackInt8, and those of CheckLayout.
absl::StatusOr<HostWeight> PackDenseHost(const void* weights, DType storage, int64_t n, int64_t k,
                                         DType target, ThreadPool* pool);
absl::StatusOr<HostWeight> PackInt4Host(const Int4Weight& weight, ScaleForm form, ThreadPool* pool);
absl::StatusOr<HostWeight> PackInt8Host(const Int8Weight& weight, ThreadPool* pool);

}  // namespace nibble::kernels::cuda
