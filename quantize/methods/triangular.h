// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Cholesky factorization and inversion in place, blocked, on all threads. The same bits on every
// CPU and for every number of threads (subtract_product.h).
#pragma once

#include <cstdint>

#include "base/status.h"
#include "base/thread_pool.h"
#include "quantize/methods/subtract_product.h"

namespace nibble::quantize {

// The lower triangle of `a` [k, k], row-major, becomes L with L L^T = a. What is above the diagonal
// is not read and of no use afterwards. False when a pivot is not positive: all of `a` is of no
// use.
bool FactorCholesky(double* a, int64_t k, SubtractProductFunction subtract_product,
                    ThreadPool* pool);

// `l` [k, k] lower triangular, zeros above and none on the diagonal, becomes its inverse.
void InvertLower(double* l, int64_t k, SubtractProductFunction subtract_product, ThreadPool* pool);

// The SubtractProduct of the instruction set in use (ChooseIsa).
absl::StatusOr<SubtractProductFunction> ChooseSubtractProduct();

}  // namespace nibble::quantize
