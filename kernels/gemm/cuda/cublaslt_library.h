// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What of cuBLASLt's binary interface cublaslt.cc uses: its header comes with a package of half a
// gigabyte, and the library is opened at run time. A test compares it with the header where there
// is one.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace nibble::kernels::cuda {

enum class LtStatus : int { kSuccess = 0, kInvalidValue = 7, kNotSupported = 15 };
enum class LtCompute : int { k32F = 68, k32I = 72 };
enum class LtOperation : int { kTransposed = 1 };
enum class LtDescAttribute : int { kTransposeA = 3 };
enum class LtPreferenceAttribute : int {
  kMaxWorkspaceBytes = 1,    // uint64_t
  kReductionSchemeMask = 3,  // uint32_t, this one and the rest
  kMinAlignmentA = 5,
  kMinAlignmentB = 6,
  kMinAlignmentC = 7,
  kMinAlignmentD = 8
};
// A bit of kReductionSchemeMask.
inline constexpr uint32_t kLtReductionComputeType = 2;

// Theirs.
struct LtContext;
struct LtDesc;
struct LtLayout;
struct LtPreference;

struct LtAlgorithm {
  uint64_t data[8];
};
struct LtHeuristicResult {
  LtAlgorithm algorithm;
  size_t workspace_bytes;
  LtStatus state;
  float waves;
  int reserved[4];
};

// The library's functions, without their prefix. Layouts count columns first.
struct LtFunctions {
  LtStatus (*Create)(LtContext**) = nullptr;
  LtStatus (*Destroy)(LtContext*) = nullptr;
  size_t (*GetVersion)() = nullptr;
  const char* (*GetStatusName)(LtStatus) = nullptr;
  // alpha, A, B, beta, C, D, each matrix before its layout; algorithm, workspace, its bytes.
  LtStatus (*Matmul)(LtContext*, LtDesc*, const void*, const void*, LtLayout*, const void*,
                     LtLayout*, const void*, const void*, LtLayout*, void*, LtLayout*,
                     const LtAlgorithm*, void*, size_t, cudaStream_t) = nullptr;
  // Layouts of A, B, C and D; number asked for, results, number found.
  LtStatus (*MatmulAlgoGetHeuristic)(LtContext*, LtDesc*, LtLayout*, LtLayout*, LtLayout*,
                                     LtLayout*, LtPreference*, int, LtHeuristicResult*,
                                     int*) = nullptr;
  LtStatus (*MatmulDescCreate)(LtDesc**, LtCompute, cudaDataType) = nullptr;
  LtStatus (*MatmulDescDestroy)(LtDesc*) = nullptr;
  LtStatus (*MatmulDescSetAttribute)(LtDesc*, LtDescAttribute, const void*, size_t) = nullptr;
  // Type, rows, columns, elements from one column to the next.
  LtStatus (*MatrixLayoutCreate)(LtLayout**, cudaDataType, uint64_t, uint64_t, int64_t) = nullptr;
  LtStatus (*MatrixLayoutDestroy)(LtLayout*) = nullptr;
  LtStatus (*MatmulPreferenceCreate)(LtPreference**) = nullptr;
  LtStatus (*MatmulPreferenceDestroy)(LtPreference*) = nullptr;
  LtStatus (*MatmulPreferenceSetAttribute)(LtPreference*, LtPreferenceAttribute, const void*,
                                           size_t) = nullptr;
};

}  // namespace nibble::kernels::cuda
