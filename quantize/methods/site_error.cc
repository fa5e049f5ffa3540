// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/methods/site_error.h"

#include <algorithm>
#include <utility>

#include "kernels/quant/quantize_rows.h"
#include "quantize/methods/equalization.h"
#include "quantize/methods/rounding.h"

namespace nibble::quantize {
namespace {

constexpr int64_t kRowGrain = 8;

// Sum over i of a[i] * b[i], rows summed one by one and then in order: the same whatever the
// threads.
double SumOfProducts(const std::vector<float>& a, const std::vector<float>& b, int64_t k,
                     ThreadPool* pool) {
  std::vector<double> rows(a.size() / static_cast<size_t>(k));
  pool->ParallelFor(static_cast<int64_t>(rows.size()), kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      double sum = 0.0;
      for (auto i = static_cast<size_t>(row * k); i < static_cast<size_t>((row + 1) * k); ++i) {
        sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
      }
      rows[static_cast<size_t>(row)] = sum;
    }
  });
  double total = 0.0;
  for (const double sum : rows) total += sum;
  return total;
}

std::vector<float> Product(const kernels::PackedWeight& weight, const std::vector<float>& a,
                           ThreadPool* pool) {
  const int64_t n = weight.desc().n;
  const int64_t k = weight.desc().k;
  const int64_t num_rows = static_cast<int64_t>(a.size()) / k;
  std::vector<float> d(static_cast<size_t>(num_rows * n));
  kernels::Run(weight, {.m = num_rows, .a = a.data(), .a_stride = k, .d = d.data(), .d_stride = n},
               pool);
  return d;
}

// `num_rows` rows of `matrix`, evenly spaced.
Matrix Thinned(const Matrix& matrix, int64_t num_rows) {
  Matrix rows = {.name = matrix.name, .n = num_rows, .k = matrix.k};
  for (int64_t i = 0; i < num_rows; ++i) {
    const float* row = matrix.weight.data() + i * matrix.n / num_rows * matrix.k;
    rows.weight.insert(rows.weight.end(), row, row + matrix.k);
  }
  return rows;
}

}  // namespace

absl::StatusOr<SiteErrorMeter> SiteErrorMeter::Create(SiteErrorArgs args, ThreadPool* pool) {
  const InputStatistics& statistics = *args.statistics;
  NIBBLE_RETURN_IF_ERROR(ValidateStatistics(statistics));
  if (statistics.hessian.empty()) {
    return InvalidArgument("a search over scales needs a Hessian of the {} channels", statistics.k);
  }
  if (args.scheme.activation_bits == 8 && statistics.num_samples < 1) {
    return InvalidArgument("a search over scales for int8 activations needs samples, there are {}",
                           statistics.num_samples);
  }
  for (const Matrix* matrix : args.consumers) {
    if (matrix->k != statistics.k ||
        static_cast<int64_t>(matrix->weight.size()) != matrix->n * matrix->k) {
      return InvalidArgument("{} is [{}, {}] of {} weights, its statistics are of {} channels",
                             matrix->name, matrix->n, matrix->k, matrix->weight.size(),
                             statistics.k);
    }
  }
  SiteErrorMeter meter;
  meter.thinned_.reserve(args.consumers.size());  // pointers to its elements are kept
  for (const Matrix*& matrix : args.consumers) {
    if (args.max_rows < 1 || matrix->n <= args.max_rows) continue;
    meter.thinned_.push_back(Thinned(*matrix, args.max_rows));
    matrix = &meter.thinned_.back();
  }
  const std::vector<float> hessian(statistics.hessian.begin(), statistics.hessian.end());
  NIBBLE_ASSIGN_OR_RETURN(
      meter.hessian_, kernels::PackDense(hessian.data(), DType::kF32, statistics.k, statistics.k,
                                         DType::kF32, args.isa, pool));
  for (const Matrix* matrix : args.consumers) {
    meter.energies_.push_back(SumOfProducts(
        matrix->weight, Product(*meter.hessian_, matrix->weight, pool), statistics.k, pool));
  }
  meter.args_ = std::move(args);
  return meter;
}

std::vector<float> SiteErrorMeter::ActivationErrors(const std::vector<float>& scale,
                                                    ThreadPool* pool) const {
  const InputStatistics& statistics = *args_.statistics;
  const auto k = static_cast<size_t>(statistics.k);
  std::vector<float> x(statistics.samples.size());
  for (size_t i = 0; i < x.size(); ++i) x[i] = statistics.samples[i] / scale[i % k];
  std::vector<int8_t> codes(x.size());
  std::vector<float> scales(static_cast<size_t>(statistics.num_samples));
  std::vector<int32_t> sums(scales.size());
  kernels::QuantizeRows(x.data(), statistics.k, statistics.num_samples, statistics.k,
                        {.values = codes.data(),
                         .scales = scales.data(),
                         .sums = sums.data(),
                         .stride = statistics.k},
                        args_.isa, pool);
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = static_cast<float>(codes[i]) * scales[i / k] - x[i];
  }
  return x;
}

absl::StatusOr<SiteError> SiteErrorMeter::Measure(const std::vector<float>& scale,
                                                  ThreadPool* pool) const {
  const InputStatistics& statistics = *args_.statistics;
  const auto k = static_cast<size_t>(statistics.k);
  if (scale.size() != k) {
    return InvalidArgument("{} scales for {} channels", scale.size(), statistics.k);
  }
  std::vector<float> activation_errors;
  if (args_.scheme.activation_bits == 8) activation_errors = ActivationErrors(scale, pool);
  SiteError result;
  const double share = 1.0 / static_cast<double>(args_.consumers.size());
  for (size_t c = 0; c < args_.consumers.size(); ++c) {
    const Matrix& matrix = *args_.consumers[c];
    if (!(energies_[c] > 0.0)) continue;  // no output, no error
    std::vector<float> scaled(matrix.weight.size());
    for (size_t i = 0; i < scaled.size(); ++i) scaled[i] = matrix.weight[i] * scale[i % k];
    NIBBLE_ASSIGN_OR_RETURN(
        const QuantizedWeight quantized,
        QuantizeRtnMatrix(scaled.data(), matrix.n, matrix.k, args_.scheme, pool));
    std::vector<float> rounded = Dequantize(quantized);
    if (!activation_errors.empty()) {
      NIBBLE_ASSIGN_OR_RETURN(const auto packed,
                              kernels::PackDense(rounded.data(), DType::kF32, matrix.n, matrix.k,
                                                 DType::kF32, args_.isa, pool));
      const std::vector<float> errors = Product(*packed, activation_errors, pool);
      // The errors are of num_samples tokens, the Hessian is a mean over tokens.
      result.activations += share * SumOfProducts(errors, errors, matrix.n, pool) /
                            static_cast<double>(statistics.num_samples) / energies_[c];
    }
    for (size_t i = 0; i < rounded.size(); ++i) {
      rounded[i] = rounded[i] / scale[i % k] - matrix.weight[i];
    }
    // Rounding of the product may leave a sum of nothing slightly below 0.
    result.weights += share *
                      std::max(0.0, SumOfProducts(rounded, Product(*hessian_, rounded, pool),
                                                  statistics.k, pool)) /
                      energies_[c];
  }
  return result;
}

}  // namespace nibble::quantize
