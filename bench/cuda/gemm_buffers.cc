// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <vector>

#include "base/check.h"
#include "bench/cuda/gemm_variants.h"
#include "bench/gemm_subject.h"
#include "bench/random_weight.h"
#include "kernels/quant/cuda/quantize_rows.h"

namespace nibble::bench {
namespace {

int64_t RoundUp(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

}  // namespace

kernels::GemmDesc DescOf(std::string_view kind, const CudaGemmShape& shape) {
  const WeightKind* const found = FindWeightKind(kind);
  NIBBLE_CHECK(found != nullptr);
  kernels::GemmDesc desc = found->desc;
  desc.n = shape.n;
  desc.k = shape.k;
  desc.group_size = std::min(desc.group_size, shape.k);
  return desc;
}

absl::StatusOr<GemmBuffers> GemmBuffers::Create(int64_t num_a_rows, int64_t k, int64_t num_d_rows,
                                                int64_t n, int64_t workspace_bytes,
                                                cudaStream_t stream) {
  GemmBuffers buffers;
  buffers.k_ = k;
  buffers.k_stride_ = RoundUp(k, 16);
  buffers.n_stride_ = RoundUp(n, 8);
  std::vector<uint16_t> a(static_cast<size_t>(num_a_rows * buffers.k_stride_));
  FillRandomBf16(a, 1);
  NIBBLE_ASSIGN_OR_RETURN(buffers.a_, gpu::Upload(a, stream));
  NIBBLE_ASSIGN_OR_RETURN(buffers.a8_, gpu::DeviceBuffer<int8_t>::Create(a.size()));
  const auto rows = static_cast<size_t>(num_a_rows);
  NIBBLE_ASSIGN_OR_RETURN(buffers.a8_scales_, gpu::DeviceBuffer<float>::Create(rows));
  NIBBLE_ASSIGN_OR_RETURN(buffers.a8_sums_, gpu::DeviceBuffer<int32_t>::Create(rows));
  NIBBLE_ASSIGN_OR_RETURN(buffers.d_, gpu::DeviceBuffer<uint16_t>::Create(
                                          static_cast<size_t>(num_d_rows * buffers.n_stride_)));
  NIBBLE_ASSIGN_OR_RETURN(buffers.workspace_,
                          gpu::DeviceBuffer<uint8_t>::Create(static_cast<size_t>(workspace_bytes)));
  return buffers;
}

kernels::cuda::DeviceMatrix GemmBuffers::A(int64_t first_row) const {
  return {a_.data() + first_row * k_stride_, DType::kBf16, k_stride_};
}

kernels::cuda::DeviceMatrix GemmBuffers::D(int64_t first_row) const {
  return {d_.data() + first_row * n_stride_, DType::kBf16, n_stride_};
}

kernels::QuantizedRows GemmBuffers::A8() const {
  return {a8_.data(), a8_scales_.data(), a8_sums_.data(), k_stride_};
}

absl::Status GemmBuffers::Quantize(int64_t num_rows, cudaStream_t stream) const {
  return kernels::cuda::QuantizeRows(A(), num_rows, k_, {.values = {}, .quantized = A8()}, nullptr,
                                     stream);
}

}  // namespace nibble::bench
