// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The emulator's cuBLASLt: plain loops, in the stream's order.

#include "kernels/gemm/cuda/cublaslt.h"

#include <cstdint>

#include "base/float16.h"
#include "tests/simt/runtime.h"

namespace nibble::kernels::cuda {
namespace {

double Load(DType type, const void* data, int64_t index) {
  switch (type) {
    case DType::kBf16:
      return ToFloat(static_cast<const BFloat16*>(data)[index]);
    case DType::kF16:
      return ToFloat(static_cast<const Float16*>(data)[index]);
    case DType::kI8:
      return static_cast<const int8_t*>(data)[index];
    case DType::kI32:
      return static_cast<const int32_t*>(data)[index];
    default:
      return static_cast<const float*>(data)[index];
  }
}

void Store(DType type, void* data, int64_t index, double value) {
  switch (type) {
    case DType::kBf16:
      static_cast<BFloat16*>(data)[index] = ToBFloat16(static_cast<float>(value));
      return;
    case DType::kF16:
      static_cast<Float16*>(data)[index] = ToFloat16(static_cast<float>(value));
      return;
    case DType::kI32:
      static_cast<int32_t*>(data)[index] = static_cast<int32_t>(value);
      return;
    default:
      static_cast<float*>(data)[index] = static_cast<float>(value);
  }
}

void MultiplyNow(const LtMatmul& x) {
  for (int64_t row = 0; row < x.m; ++row) {
    for (int64_t column = 0; column < x.n; ++column) {
      const int64_t index = row * x.d_stride + column;
      double sum = x.accumulate ? Load(x.d_type, x.d, index) : 0.0;
      for (int64_t k = 0; k < x.k; ++k) {
        sum += Load(x.type, x.a, row * x.a_stride + k) * Load(x.type, x.b, column * x.b_stride + k);
      }
      Store(x.d_type, x.d, index, sum);
    }
  }
}

class CublasLtOfEmulator final : public CublasLt {
 public:
  absl::Status Multiply(const LtMatmul& matmul, void* /*workspace*/, int64_t /*workspace_bytes*/,
                        cudaStream_t stream) override {
    if (!LtTakes(matmul.type, matmul.d_type)) {
      return InvalidArgument("cublaslt: a product of {} into {}", ToString(matmul.type),
                             ToString(matmul.d_type));
    }
    const cudaError_t error = simt::Enqueue(stream, [matmul] {
      MultiplyNow(matmul);
      return cudaSuccess;
    });
    return error == cudaSuccess ? absl::OkStatus() : Internal("{}", cudaGetErrorName(error));
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<CublasLt>> CublasLt::Open(const char* /*file*/) {
  return std::make_unique<CublasLtOfEmulator>();
}

}  // namespace nibble::kernels::cuda
