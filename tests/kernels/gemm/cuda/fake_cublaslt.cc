// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A library with cuBLASLt's functions, that multiplies bf16 into float32 in plain loops: what is
// asked of the real one is checked on hosts without a device.

#include <cublasLt.h>

#include "base/float16.h"

extern "C" {

int fake_num_heuristics = 0;
bool fake_has_algorithm = true;

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  static int context;
  *handle = reinterpret_cast<cublasLtHandle_t>(&context);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t) { return CUBLAS_STATUS_SUCCESS; }
size_t cublasLtGetVersion() { return 130000; }
const char* cublasLtGetStatusName(cublasStatus_t status) {
  return status == CUBLAS_STATUS_NOT_SUPPORTED ? "CUBLAS_STATUS_NOT_SUPPORTED" : "another";
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) return CUBLAS_STATUS_INVALID_VALUE;
  *desc = new cublasLtMatmulDescOpaque_t{};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  delete desc;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t size) {
  if (attribute != CUBLASLT_MATMUL_DESC_TRANSA || size != sizeof(cublasOperation_t)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  desc->data[0] = *static_cast<const cublasOperation_t*>(value) == CUBLAS_OP_T ? 1 : 0;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type,
                                          uint64_t rows, uint64_t columns, int64_t stride) {
  *layout = new cublasLtMatrixLayoutOpaque_t{};
  (*layout)->data[0] = static_cast<uint64_t>(type);
  (*layout)->data[1] = rows;
  (*layout)->data[2] = columns;
  (*layout)->data[3] = static_cast<uint64_t>(stride);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = new cublasLtMatmulPreferenceOpaque_t{};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void*, size_t size) {
  const bool bytes = attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
  return size == (bytes ? sizeof(uint64_t) : sizeof(uint32_t)) ? CUBLAS_STATUS_SUCCESS
                                                               : CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatmulPreference_t, int,
                                              cublasLtMatmulHeuristicResult_t* results,
                                              int* num_found) {
  ++fake_num_heuristics;
  *num_found = fake_has_algorithm ? 1 : 0;
  results[0].state = CUBLAS_STATUS_SUCCESS;
  results[0].algo.data[0] = 77;
  return CUBLAS_STATUS_SUCCESS;
}

// Columns first, as the real one counts.
cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t desc, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                              cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                              cublasLtMatrixLayout_t, void* d, cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t* algorithm, void*, size_t, cudaStream_t) {
  const auto& [a_type, a_rows, a_columns, a_stride, a4, a5, a6, a7] = a_layout->data;
  const auto& [b_type, b_rows, b_columns, b_stride, b4, b5, b6, b7] = b_layout->data;
  const auto& [d_type, d_rows, d_columns, d_stride, d4, d5, d6, d7] = d_layout->data;
  if (desc->data[0] != 1 || algorithm->data[0] != 77 || a_type != CUDA_R_16BF ||
      b_type != CUDA_R_16BF || d_type != CUDA_R_32F || a_rows != b_rows || a_columns != d_rows ||
      b_columns != d_columns || *static_cast<const float*>(alpha) != 1.0F || c != d) {
    return CUBLAS_STATUS_INVALID_VALUE;
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
  return CUBLAS_STATUS_SUCCESS;
}

}  // extern "C"
