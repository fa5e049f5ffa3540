// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A library with cuBLASLt's functions, that multiplies bf16 into float32 in plain loops: what is
// asked of the real one is checked on hosts without a device.

#include <cstdint>
#include <cstring>

#include "base/float16.h"
#include "kernels/gemm/cuda/cublaslt_library.h"

namespace nibble::kernels::cuda {
struct LtContext {};
struct LtDesc {
  bool transpose_a = false;
};
struct LtLayout {
  cudaDataType type;
  uint64_t rows;
  uint64_t columns;
  uint64_t stride;
};
struct LtPreference {};
}  // namespace nibble::kernels::cuda

using nibble::kernels::cuda::LtAlgorithm;
using nibble::kernels::cuda::LtCompute;
using nibble::kernels::cuda::LtContext;
using nibble::kernels::cuda::LtDesc;
using nibble::kernels::cuda::LtDescAttribute;
using nibble::kernels::cuda::LtHeuristicResult;
using nibble::kernels::cuda::LtLayout;
using nibble::kernels::cuda::LtOperation;
using nibble::kernels::cuda::LtPreference;
using nibble::kernels::cuda::LtPreferenceAttribute;
using nibble::kernels::cuda::LtStatus;

extern "C" {

int fake_num_heuristics = 0;
bool fake_has_algorithm = true;
uint32_t fake_reduction_schemes = 0;  // that were allowed at last; 0 if nothing was said

LtStatus cublasLtCreate(LtContext** handle) {
  static LtContext context;
  *handle = &context;
  return LtStatus::kSuccess;
}
LtStatus cublasLtDestroy(LtContext*) { return LtStatus::kSuccess; }
size_t cublasLtGetVersion() { return 130000; }
const char* cublasLtGetStatusName(LtStatus status) {
  return status == LtStatus::kNotSupported ? "CUBLAS_STATUS_NOT_SUPPORTED" : "another";
}

LtStatus cublasLtMatmulDescCreate(LtDesc** desc, LtCompute compute, cudaDataType scale) {
  if (compute != LtCompute::k32F || scale != CUDA_R_32F) return LtStatus::kInvalidValue;
  *desc = new LtDesc;
  return LtStatus::kSuccess;
}
LtStatus cublasLtMatmulDescDestroy(LtDesc* desc) {
  delete desc;
  return LtStatus::kSuccess;
}
LtStatus cublasLtMatmulDescSetAttribute(LtDesc* desc, LtDescAttribute attribute, const void* value,
                                        size_t size) {
  if (attribute != LtDescAttribute::kTransposeA || size != sizeof(LtOperation)) {
    return LtStatus::kInvalidValue;
  }
  desc->transpose_a = *static_cast<const LtOperation*>(value) == LtOperation::kTransposed;
  return LtStatus::kSuccess;
}

LtStatus cublasLtMatrixLayoutCreate(LtLayout** layout, cudaDataType type, uint64_t rows,
                                    uint64_t columns, int64_t stride) {
  *layout = new LtLayout{type, rows, columns, static_cast<uint64_t>(stride)};
  return LtStatus::kSuccess;
}
LtStatus cublasLtMatrixLayoutDestroy(LtLayout* layout) {
  delete layout;
  return LtStatus::kSuccess;
}

LtStatus cublasLtMatmulPreferenceCreate(LtPreference** preference) {
  *preference = new LtPreference;
  fake_reduction_schemes = 0;
  return LtStatus::kSuccess;
}
LtStatus cublasLtMatmulPreferenceDestroy(LtPreference* preference) {
  delete preference;
  return LtStatus::kSuccess;
}
LtStatus cublasLtMatmulPreferenceSetAttribute(LtPreference*, LtPreferenceAttribute attribute,
                                              const void* value, size_t size) {
  const bool bytes = attribute == LtPreferenceAttribute::kMaxWorkspaceBytes;
  if (attribute == LtPreferenceAttribute::kReductionSchemeMask && size == sizeof(uint32_t)) {
    std::memcpy(&fake_reduction_schemes, value, size);
  }
  return size == (bytes ? sizeof(uint64_t) : sizeof(uint32_t)) ? LtStatus::kSuccess
                                                               : LtStatus::kInvalidValue;
}

LtStatus cublasLtMatmulAlgoGetHeuristic(LtContext*, LtDesc*, LtLayout*, LtLayout*, LtLayout*,
                                        LtLayout*, LtPreference*, int, LtHeuristicResult* results,
                                        int* num_found) {
  ++fake_num_heuristics;
  *num_found = fake_has_algorithm ? 1 : 0;
  results[0].state = LtStatus::kSuccess;
  results[0].algorithm.data[0] = 77;
  return LtStatus::kSuccess;
}

// Columns first, as the real one counts.
LtStatus cublasLtMatmul(LtContext*, LtDesc* desc, const void* alpha, const void* a,
                        LtLayout* a_layout, const void* b, LtLayout* b_layout, const void* beta,
                        const void* c, LtLayout*, void* d, LtLayout* d_layout,
                        const LtAlgorithm* algorithm, void*, size_t, cudaStream_t) {
  const auto& [a_type, a_rows, a_columns, a_stride] = *a_layout;
  const auto& [b_type, b_rows, b_columns, b_stride] = *b_layout;
  const auto& [d_type, d_rows, d_columns, d_stride] = *d_layout;
  if (!desc->transpose_a || algorithm->data[0] != 77 || a_type != CUDA_R_16BF ||
      b_type != CUDA_R_16BF || d_type != CUDA_R_32F || a_rows != b_rows || a_columns != d_rows ||
      b_columns != d_columns || *static_cast<const float*>(alpha) != 1.0F || c != d) {
    return LtStatus::kInvalidValue;
  }
  const auto load = [](const void* data, uint64_t index) {
    return nibble::ToFloat(static_cast<const nibble::BFloat16*>(data)[index]);
  };
  for (uint64_t column = 0; column < d_columns; ++column) {
    for (uint64_t row = 0; row < d_rows; ++row) {
      float* const to = static_cast<float*>(d) + column * d_stride + row;
      const float factor = *static_cast<const float*>(beta);
      float sum = factor != 0.0F ? factor * *to : 0.0F;
      for (uint64_t k = 0; k < a_rows; ++k) {
        sum += load(a, row * a_stride + k) * load(b, column * b_stride + k);
      }
      *to = sum;
    }
  }
  return LtStatus::kSuccess;
}

}  // extern "C"
