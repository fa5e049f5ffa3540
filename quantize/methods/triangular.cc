// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/methods/triangular.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/cpu_features.h"

namespace nibble::quantize {
namespace {

// Columns of a panel. Work inside the panels is k^2 * kPanel / 2, on all of it k^3 / 6.
constexpr int64_t kPanel = 128;

// The diagonal block alone.
bool FactorBlock(double* a, int64_t lda, int64_t size) {
  for (int64_t j = 0; j < size; ++j) {
    double* row = a + j * lda;
    for (int64_t i = 0; i < j; ++i) {
      double sum = row[i];
      for (int64_t m = 0; m < i; ++m) sum -= row[m] * a[i * lda + m];
      row[i] = sum / a[i * lda + i];
    }
    double pivot = row[j];
    for (int64_t m = 0; m < j; ++m) pivot -= row[m] * row[m];
    if (!(pivot > 0.0) || !std::isfinite(pivot)) return false;
    row[j] = std::sqrt(pivot);
  }
  return true;
}

// row [size] becomes x with x L^T = row; l_transposed holds L^T, so that loops run along rows.
void SolveRow(double* row, const double* l_transposed, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    const double x = row[i] / l_transposed[i * size + i];
    row[i] = x;
    for (int64_t j = i + 1; j < size; ++j) row[j] -= x * l_transposed[i * size + j];
  }
}

// to [columns, rows] = transpose of from [rows, columns].
void Transpose(const double* from, int64_t ld, int64_t rows, int64_t columns, double* to) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) to[j * rows + i] = from[i * ld + j];
  }
}

// inverse [size, size] of lower triangular l; zeros above the diagonal.
void InvertBlock(const double* l, int64_t ldl, int64_t size, double* inverse) {
  std::fill(inverse, inverse + size * size, 0.0);
  for (int64_t i = 0; i < size; ++i) {
    double* row = inverse + i * size;
    row[i] = 1.0;
    for (int64_t m = 0; m < i; ++m) {
      const double factor = l[i * ldl + m];
      for (int64_t j = 0; j <= m; ++j) row[j] -= factor * inverse[m * size + j];
    }
    for (int64_t j = 0; j <= i; ++j) row[j] /= l[i * ldl + i];
  }
}

}  // namespace

absl::StatusOr<SubtractProductFunction> ChooseSubtractProduct() {
  NIBBLE_ASSIGN_OR_RETURN(const Isa isa, ChooseIsa());
  switch (isa) {
    case Isa::kRef:
      return &ref::SubtractProduct;
    case Isa::kAvx2:
      return &avx2::SubtractProduct;
    case Isa::kAvx512Vnni:
    case Isa::kAmx:  // has no doubles
      return &avx512vnni::SubtractProduct;
  }
  return Internal("unknown instruction set {}", static_cast<int>(isa));
}

bool FactorCholesky(double* a, int64_t k, SubtractProductFunction subtract_product,
                    ThreadPool* pool) {
  std::vector<double> block(static_cast<size_t>(kPanel * kPanel));
  std::vector<double> panel(static_cast<size_t>(kPanel * k));  // L's panel, transposed
  for (int64_t first = 0; first < k; first += kPanel) {
    const int64_t width = std::min(kPanel, k - first);
    const int64_t below = first + width;
    const int64_t num_below = k - below;
    if (!FactorBlock(a + first * k + first, k, width)) return false;
    Transpose(a + first * k + first, k, width, width, block.data());
    pool->ParallelFor(num_below, 32, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        double* row = a + (below + i) * k + first;
        SolveRow(row, block.data(), width);
        for (int64_t j = 0; j < width; ++j) {
          panel[static_cast<size_t>(j * num_below + i)] = row[j];
        }
      }
    });
    pool->ParallelFor(num_below, 32, [&](int64_t begin, int64_t end) {
      subtract_product({.m = end - begin,
                        .n = end,  // up to the diagonal of the piece's last row
                        .depth = width,
                        .a = a + (below + begin) * k + first,
                        .lda = k,
                        .b = panel.data(),
                        .ldb = num_below,
                        .c = a + (below + begin) * k + below,
                        .ldc = k});
    });
  }
  return true;
}

void InvertLower(double* l, int64_t k, SubtractProductFunction subtract_product, ThreadPool* pool) {
  std::vector<double> inverse(static_cast<size_t>(kPanel * kPanel));
  std::vector<double> rows(static_cast<size_t>(kPanel * k));
  for (int64_t first = 0; first < k; first += kPanel) {
    const int64_t width = std::min(kPanel, k - first);
    InvertBlock(l + first * k + first, k, width, inverse.data());
    for (int64_t i = 0; i < width; ++i) {
      std::copy_n(l + (first + i) * k, first, rows.data() + i * first);
      std::copy_n(inverse.data() + i * width, width, l + (first + i) * k + first);
    }
    // Left of the diagonal block: -inverse * (rows * what is above, inverted already).
    pool->ParallelFor((first + kPanel - 1) / kPanel, 1, [&](int64_t begin, int64_t end) {
      std::vector<double> product(static_cast<size_t>(kPanel * kPanel));
      for (int64_t column = begin * kPanel; column < end * kPanel; column += kPanel) {
        std::fill(product.begin(), product.end(), 0.0);
        subtract_product({.m = width,
                          .n = kPanel,
                          .depth = first - column,
                          .a = rows.data() + column,
                          .lda = first,
                          .b = l + column * k + column,
                          .ldb = k,
                          .c = product.data(),
                          .ldc = kPanel});
        for (int64_t i = 0; i < width; ++i) {
          double* row = l + (first + i) * k + column;
          std::fill(row, row + kPanel, 0.0);
          for (int64_t m = 0; m <= i; ++m) {
            const double factor = inverse[static_cast<size_t>(i * width + m)];
            for (int64_t j = 0; j < kPanel; ++j) {
              row[j] += factor * product[static_cast<size_t>(m * kPanel + j)];
            }
          }
        }
      }
    });
  }
}

}  // namespace nibble::quantize
