// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/methods/hessian_factor.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <numeric>

#include "quantize/methods/rounding.h"
#include "quantize/methods/triangular.h"

namespace nibble::quantize {
namespace {

// First damping that is tried where the caller's was 0 and did not do.
constexpr double kFirstRaise = 1e-4;

}  // namespace

absl::StatusOr<HessianFactor> HessianFactor::Create(std::string_view name,
                                                    const InputStatistics& statistics,
                                                    const DampingOptions& options,
                                                    ThreadPool* pool) try {
  const int64_t k = statistics.k;
  NIBBLE_RETURN_IF_ERROR(CheckStatistics(name, statistics, k));
  NIBBLE_ASSIGN_OR_RETURN(const SubtractProductFunction subtract_product, ChooseSubtractProduct());
  if (!(options.damping >= 0.0 && options.damping <= 1.0)) {
    return InvalidArgument("{}: damping is {}, the range is 0..1", name, options.damping);
  }
  if (!(options.max_damping >= options.damping && options.max_damping <= 1e6)) {
    return InvalidArgument("{}: max_damping is {}, the range is {}..1e6", name, options.max_damping,
                           options.damping);
  }
  const double* hessian = statistics.hessian.data();
  HessianFactor factor;
  factor.order_.resize(static_cast<size_t>(k));
  std::iota(factor.order_.begin(), factor.order_.end(), 0);
  if (options.activation_order) {
    std::stable_sort(factor.order_.begin(), factor.order_.end(), [&](int32_t a, int32_t b) {
      return hessian[a * (k + 1)] > hessian[b * (k + 1)];
    });
  }
  double mean = 0.0;
  for (int64_t i = 0; i < k; ++i) {
    mean += hessian[i * (k + 1)] / static_cast<double>(k);
  }
  std::vector<double>& a = factor.factor_;
  a.resize(static_cast<size_t>(k * k));
  for (factor.damping_ = options.damping;;
       factor.damping_ = std::max(factor.damping_ * 10.0, kFirstRaise)) {
    if (factor.damping_ > options.max_damping) {
      return absl::FailedPreconditionError(
          fmt::format("{}: the Hessian of its inputs is not positive definite, nor with damping up "
                      "to {}: more calibration text, or broken activations",
                      name, options.max_damping));
    }
    factor.added_ = factor.damping_ * mean;
    // In reversed order J H J = L L^T, so U = J L^-1 J is upper triangular and U^T U = H^-1.
    pool->ParallelFor(k, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = factor.order_[static_cast<size_t>(k - 1 - i)];
        for (int64_t j = 0; j <= i; ++j) {
          const int64_t column = factor.order_[static_cast<size_t>(k - 1 - j)];
          a[static_cast<size_t>(i * k + j)] = hessian[row * k + column];
        }
        // A dead column is on its own: any diagonal keeps it so.
        const bool dead = hessian[row * (k + 1)] == 0.0;
        a[static_cast<size_t>(i * (k + 1))] += dead ? 1.0 : factor.added_;
      }
    });
    if (FactorCholesky(a.data(), k, subtract_product, pool)) break;
  }
  for (int64_t i = 0; i < k; ++i) {
    std::fill(a.begin() + i * k + i + 1, a.begin() + (i + 1) * k, 0.0);
  }
  InvertLower(a.data(), k, subtract_product, pool);
  std::reverse(a.begin(), a.end());  // J L^-1 J
  return factor;
} catch (const std::bad_alloc&) {
  return ResourceExhausted("{}: no memory for the factor of a Hessian of {} inputs", name,
                           statistics.k);
}

}  // namespace nibble::quantize
