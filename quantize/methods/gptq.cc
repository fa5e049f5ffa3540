// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/methods/gptq.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <numeric>
#include <utility>

#include "quantize/methods/clip.h"
#include "quantize/methods/grid.h"
#include "quantize/methods/rounding.h"

namespace nibble::quantize {
namespace {

// Columns whose errors are passed on to the rest of the row at once.
constexpr int64_t kBlock = 128;

// Lower triangle of `a` [k, k] becomes L with L L^T = a. False when a pivot is not positive.
bool Cholesky(double* a, int64_t k, ThreadPool* pool) {
  for (int64_t j = 0; j < k; ++j) {
    const double pivot = a[j * k + j];
    if (!(pivot > 0.0) || !std::isfinite(pivot)) return false;
    const double root = std::sqrt(pivot);
    for (int64_t i = j; i < k; ++i) a[i * k + j] /= root;
    pool->ParallelFor(k - j - 1, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = j + 1 + begin; i < j + 1 + end; ++i) {
        const double factor = a[i * k + j];
        for (int64_t l = j + 1; l <= i; ++l) a[i * k + l] -= factor * a[l * k + j];
      }
    });
  }
  return true;
}

// `l` lower triangular becomes its inverse.
void InvertLower(double* l, int64_t k) {
  for (int64_t j = 0; j < k; ++j) {
    l[j * k + j] = 1.0 / l[j * k + j];
    for (int64_t i = j + 1; i < k; ++i) {
      double sum = 0.0;
      for (int64_t m = j; m < i; ++m) sum += l[i * k + m] * l[m * k + j];
      l[i * k + j] = -sum / l[i * k + i];
    }
  }
}

}  // namespace

absl::StatusOr<HessianFactor> HessianFactor::Create(std::string_view name,
                                                    const InputStatistics& statistics,
                                                    const DampingOptions& options,
                                                    ThreadPool* pool) try {
  const int64_t k = statistics.k;
  NIBBLE_RETURN_IF_ERROR(CheckStatistics(name, statistics, k));
  if (!(options.damping >= 0.0 && options.damping <= 1.0) ||
      !(options.max_damping >= options.damping && options.max_damping <= 1e6)) {
    return InvalidArgument("{}: damping {} up to {}, the range is 0..1 up to 1e6", name,
                           options.damping, options.max_damping);
  }
  const std::vector<double>& hessian = statistics.hessian;
  const auto diagonal = [&](int64_t i) { return hessian[static_cast<size_t>(i * (k + 1))]; };
  HessianFactor factor;
  factor.order_.resize(static_cast<size_t>(k));
  std::iota(factor.order_.begin(), factor.order_.end(), 0);
  if (options.activation_order) {
    std::stable_sort(factor.order_.begin(), factor.order_.end(),
                     [&](int32_t a, int32_t b) { return diagonal(a) > diagonal(b); });
  }
  factor.dead_.resize(static_cast<size_t>(k));
  double mean = 0.0;
  for (int64_t i = 0; i < k; ++i) {
    mean += diagonal(i) / static_cast<double>(k);
    factor.dead_[static_cast<size_t>(i)] = diagonal(i) == 0.0;
    factor.num_dead_columns_ += diagonal(i) == 0.0 ? 1 : 0;
  }
  // In reversed order J H J = L L^T, so U = J L^-1 J is upper triangular and U^T U = H^-1.
  factor.factor_.resize(static_cast<size_t>(k * k));
  std::vector<double> work(static_cast<size_t>(k * k));
  for (factor.damping_ = options.damping;; factor.damping_ = std::max(factor.damping_ * 10, 1e-4)) {
    if (factor.damping_ > options.max_damping) {
      return absl::FailedPreconditionError(fmt::format(
          "{}: the Hessian of the inputs is not positive definite with damping up to {}", name,
          options.max_damping));
    }
    for (int64_t i = 0; i < k; ++i) {
      const int64_t row = factor.order_[static_cast<size_t>(k - 1 - i)];
      for (int64_t j = 0; j < k; ++j) {
        const int64_t column = factor.order_[static_cast<size_t>(k - 1 - j)];
        work[static_cast<size_t>(i * k + j)] = hessian[static_cast<size_t>(row * k + column)];
      }
      work[static_cast<size_t>(i * (k + 1))] += factor.IsDead(row) ? 1.0 : factor.damping_ * mean;
    }
    if (Cholesky(work.data(), k, pool)) break;
  }
  InvertLower(work.data(), k);
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      factor.factor_[static_cast<size_t>((k - 1 - i) * k + k - 1 - j)] =
          work[static_cast<size_t>(i * k + j)];
    }
  }
  return factor;
} catch (const std::bad_alloc&) {
  return ResourceExhausted("{}: no memory for the factor of a Hessian of {} inputs", name,
                           statistics.k);
}

absl::StatusOr<GptqResult> QuantizeGptq(const Matrix& matrix, const InputStatistics& statistics,
                                        const HessianFactor& factor, const WeightScheme& scheme,
                                        const GptqOptions& options, ThreadPool* pool) try {
  const int64_t n = matrix.n;
  const int64_t k = matrix.k;
  NIBBLE_RETURN_IF_ERROR(Annotate(CheckScheme(scheme, k), matrix.name));
  NIBBLE_RETURN_IF_ERROR(CheckStatistics(matrix.name, statistics, k));
  NIBBLE_RETURN_IF_ERROR(Annotate(CheckFinite(matrix.weight.data(), n, k, pool), matrix.name));
  if (factor.k() != k) {
    return InvalidArgument("{}: the factor is of {} inputs, the matrix has {}", matrix.name,
                           factor.k(), k);
  }
  const Grid grid = GridOf(scheme, k);
  std::vector<float> scales;
  if (options.scales != nullptr) {
    NIBBLE_RETURN_IF_ERROR(Annotate(CheckScales(*options.scales, n, grid.num_groups), matrix.name));
    scales = *options.scales;
  } else {
    NIBBLE_ASSIGN_OR_RETURN(ClipResult clip, SearchClipping(matrix, statistics, scheme, pool));
    scales = std::move(clip.scales);
  }

  std::vector<int8_t> codes(static_cast<size_t>(n * k));
  pool->ParallelFor(n, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> row(static_cast<size_t>(k));  // what is left to round, in rounding order
    std::vector<double> errors(kBlock);
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t i = 0; i < k; ++i) {
        row[static_cast<size_t>(i)] =
            matrix.weight[static_cast<size_t>(r * k + factor.order()[static_cast<size_t>(i)])];
      }
      for (int64_t first = 0; first < k; first += kBlock) {
        const int64_t last = std::min(first + kBlock, k);
        for (int64_t i = first; i < last; ++i) {
          const int64_t column = factor.order()[static_cast<size_t>(i)];
          const float scale =
              scales[static_cast<size_t>(r * grid.num_groups + column / grid.group_size)];
          const auto value = static_cast<float>(row[static_cast<size_t>(i)]);
          const float level = scale == 0.0F
                                  ? 0.0F
                                  : RoundToLevel(value / scale, static_cast<float>(grid.low),
                                                 static_cast<float>(grid.high));
          codes[static_cast<size_t>(r * k + column)] = static_cast<int8_t>(level);
          const double* u = factor.Row(i);
          const double error =
              (row[static_cast<size_t>(i)] - static_cast<double>(scale) * level) / u[0];
          errors[static_cast<size_t>(i - first)] = error;
          for (int64_t j = i + 1; j < last; ++j) {
            row[static_cast<size_t>(j)] -= error * u[j - i];
          }
        }
        for (int64_t i = first; i < last; ++i) {
          const double* u = factor.Row(i);
          const double error = errors[static_cast<size_t>(i - first)];
          for (int64_t j = last; j < k; ++j) row[static_cast<size_t>(j)] -= error * u[j - i];
        }
      }
    }
  });
  GptqResult result = {.weight = PackCodes(n, k, scheme, codes, std::move(scales))};
  NIBBLE_ASSIGN_OR_RETURN(result.output_error,
                          OutputError(matrix.weight.data(), result.weight, statistics, pool));
  return result;
} catch (const std::bad_alloc&) {
  return ResourceExhausted("{}: no memory to quantize [{}, {}]", matrix.name, matrix.n, matrix.k);
}

}  // namespace nibble::quantize
