// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What cublaslt_library.h declares, beside the library's own header where the host has it.

#include "gtest/gtest.h"

#include "kernels/gemm/cuda/cublaslt_library.h"
#if __has_include(<cublasLt.h>)
#include <cublasLt.h>
#endif

namespace nibble::kernels::cuda {
namespace {

TEST(CublasLtInterface, IsTheHeaders) {
#if __has_include(<cublasLt.h>)
  const auto is = [](auto ours, auto theirs) {
    static_assert(sizeof(ours) == sizeof(theirs));
    return static_cast<int64_t>(ours) == static_cast<int64_t>(theirs);
  };
  EXPECT_TRUE(is(LtStatus::kSuccess, CUBLAS_STATUS_SUCCESS));
  EXPECT_TRUE(is(LtStatus::kInvalidValue, CUBLAS_STATUS_INVALID_VALUE));
  EXPECT_TRUE(is(LtStatus::kNotSupported, CUBLAS_STATUS_NOT_SUPPORTED));
  EXPECT_TRUE(is(LtCompute::k32F, CUBLAS_COMPUTE_32F));
  EXPECT_TRUE(is(LtCompute::k32I, CUBLAS_COMPUTE_32I));
  EXPECT_TRUE(is(LtOperation::kTransposed, CUBLAS_OP_T));
  EXPECT_TRUE(is(LtDescAttribute::kTransposeA, CUBLASLT_MATMUL_DESC_TRANSA));
  using Preference = LtPreferenceAttribute;
  EXPECT_TRUE(is(Preference::kMaxWorkspaceBytes, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES));
  EXPECT_TRUE(is(Preference::kReductionSchemeMask, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK));
  EXPECT_TRUE(is(Preference::kMinAlignmentA, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES));
  EXPECT_TRUE(is(Preference::kMinAlignmentB, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES));
  EXPECT_TRUE(is(Preference::kMinAlignmentC, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES));
  EXPECT_TRUE(is(Preference::kMinAlignmentD, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES));
  EXPECT_EQ(kLtReductionComputeType, uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
  EXPECT_EQ(sizeof(LtAlgorithm), sizeof(cublasLtMatmulAlgo_t));
  EXPECT_EQ(sizeof(LtHeuristicResult), sizeof(cublasLtMatmulHeuristicResult_t));
  EXPECT_EQ(offsetof(LtHeuristicResult, workspace_bytes),
            offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize));
  EXPECT_EQ(offsetof(LtHeuristicResult, state), offsetof(cublasLtMatmulHeuristicResult_t, state));
  EXPECT_EQ(offsetof(LtHeuristicResult, waves),
            offsetof(cublasLtMatmulHeuristicResult_t, wavesCount));
#else
  GTEST_SKIP() << "cublasLt.h is not on this host";
#endif
}

}  // namespace
}  // namespace nibble::kernels::cuda
