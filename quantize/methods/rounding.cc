// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/methods/rounding.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <utility>

#include "base/cpu_features.h"
#include "kernels/quant/rtn.h"
#include "quantize/methods/grid.h"
#include "quantize/methods/triangular.h"

namespace nibble::quantize {
namespace {

constexpr int64_t kMaxDimension = int64_t{1} << 30;

absl::Status CheckShape(int64_t n, int64_t k) {
  if (n < 0 || n > kMaxDimension || k < 1 || k > kMaxDimension) {
    return InvalidArgument("cannot quantize a matrix [{}, {}]: the limits are n 0..{}, k 1..{}", n,
                           k, kMaxDimension, kMaxDimension);
  }
  return absl::OkStatus();
}

// forms[i] = x_i^T H x_i for the rows x_i of `rows` [m, k].
void QuadraticForms(const std::vector<double>& rows, const InputStatistics& statistics,
                    SubtractProductFunction subtract_product, double* forms) {
  const int64_t k = statistics.k;
  const int64_t m = static_cast<int64_t>(rows.size()) / k;
  std::vector<double> product(rows.size());  // -X H
  subtract_product({.m = m,
                    .n = k,
                    .depth = k,
                    .a = rows.data(),
                    .lda = k,
                    .b = statistics.hessian.data(),
                    .ldb = k,
                    .c = product.data(),
                    .ldc = k});
  for (int64_t row = 0; row < m; ++row) {
    double form = 0.0;
    for (int64_t i = row * k; i < (row + 1) * k; ++i) {
      form -= rows[static_cast<size_t>(i)] * product[static_cast<size_t>(i)];
    }
    forms[row] = form;
  }
}

}  // namespace

std::vector<float> Dequantize(const QuantizedWeight& weight) {
  if (const auto* int8 = std::get_if<kernels::Int8Weight>(&weight)) {
    std::vector<float> values(static_cast<size_t>(int8->n * int8->k));
    for (int64_t i = 0; i < int8->n * int8->k; ++i) {
      values[static_cast<size_t>(i)] = int8->scales[static_cast<size_t>(i / int8->k)] *
                                       static_cast<float>(int8->codes[static_cast<size_t>(i)]);
    }
    return values;
  }
  const auto& int4 = std::get<kernels::Int4Weight>(weight);
  std::vector<float> values(static_cast<size_t>(int4.n * int4.k));
  for (int64_t row = 0; row < int4.n; ++row) {
    for (int64_t column = 0; column < int4.k; ++column) {
      values[static_cast<size_t>(row * int4.k + column)] = int4.Dequantize(row, column);
    }
  }
  return values;
}

float RoundChannelScale(float value) {
  int exponent = 0;
  const float mantissa = std::frexp(value, &exponent);
  return std::ldexp(std::nearbyint(mantissa * 65536.0F) / 65536.0F, exponent);
}

QuantizedWeight PackCodes(int64_t n, int64_t k, const WeightScheme& scheme,
                          const std::vector<int8_t>& codes, std::vector<float> scales) {
  if (scheme.bits == 8) {
    return kernels::Int8Weight{.n = n, .k = k, .codes = codes, .scales = std::move(scales)};
  }
  kernels::Int4Weight packed = {.n = n, .k = k, .group_size = scheme.group_size};
  packed.codes.resize(static_cast<size_t>(n * packed.row_bytes()));
  packed.scales = std::move(scales);
  for (int64_t row = 0; row < n; ++row) {
    uint8_t* bytes = packed.codes.data() + row * packed.row_bytes();
    for (int64_t column = 0; column < k; ++column) {
      const int code = codes[static_cast<size_t>(row * k + column)] + 8;
      bytes[column / 2] =
          static_cast<uint8_t>(bytes[column / 2] | (column % 2 == 0 ? code : code << 4));
    }
  }
  return packed;
}

absl::Status CheckScheme(const WeightScheme& scheme, int64_t k) {
  if (scheme.bits != 4 && scheme.bits != 8) {
    return InvalidArgument("weights of {} bits, supported are 4 and 8", scheme.bits);
  }
  if (scheme.bits == 4 && (scheme.group_size < 1 || k % scheme.group_size != 0)) {
    return InvalidArgument("group size {} does not divide the {} input channels", scheme.group_size,
                           k);
  }
  return absl::OkStatus();
}

absl::Status CheckStatistics(std::string_view name, const InputStatistics& statistics, int64_t k) {
  if (statistics.k != k || static_cast<int64_t>(statistics.hessian.size()) != k * k) {
    return InvalidArgument("{}: statistics of {} inputs with {} numbers of Hessian, need {} and {}",
                           name, statistics.k, statistics.hessian.size(), k, k * k);
  }
  for (int64_t i = 0; i < k * k; ++i) {
    const double value = statistics.hessian[static_cast<size_t>(i)];
    const bool diagonal = i % (k + 1) == 0;
    if (!std::isfinite(value) || (diagonal && value < 0.0)) {
      return InvalidArgument("{}: the Hessian of the inputs is {} at [{}, {}]", name, value, i / k,
                             i % k);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<QuantizedWeight> QuantizeRtnMatrix(const float* w, int64_t n, int64_t k,
                                                  const WeightScheme& scheme, ThreadPool* pool) {
  NIBBLE_RETURN_IF_ERROR(CheckShape(n, k));
  NIBBLE_RETURN_IF_ERROR(CheckScheme(scheme, k));
  if (scheme.bits == 8) {
    NIBBLE_ASSIGN_OR_RETURN(kernels::Int8Weight int8, kernels::QuantizeInt8(w, n, k, pool));
    return QuantizedWeight(std::move(int8));
  }
  NIBBLE_ASSIGN_OR_RETURN(const Isa isa, ChooseIsa());
  const kernels::RtnOptions options = {
      .group_size = scheme.group_size, .folded_scales = scheme.folded_scales, .isa = isa};
  NIBBLE_ASSIGN_OR_RETURN(kernels::Int4Weight int4, kernels::QuantizeRtn(w, n, k, options, pool));
  return QuantizedWeight(std::move(int4));
}

absl::StatusOr<QuantizedWeight> RoundToScales(const float* w, int64_t n, int64_t k,
                                              const WeightScheme& scheme,
                                              const std::vector<float>& given, ThreadPool* pool) {
  NIBBLE_RETURN_IF_ERROR(CheckShape(n, k));
  NIBBLE_RETURN_IF_ERROR(CheckScheme(scheme, k));
  const Grid grid = GridOf(scheme, k);
  NIBBLE_ASSIGN_OR_RETURN(std::vector<float> scales,
                          OrdinaryScales(given, n, grid.num_groups, scheme));
  NIBBLE_RETURN_IF_ERROR(CheckFinite(w, n, k, pool));
  const auto low = static_cast<float>(grid.low);
  const auto high = static_cast<float>(grid.high);
  std::vector<int8_t> codes(static_cast<size_t>(n * k));
  pool->ParallelFor(n, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * grid.num_groups; i < end * grid.num_groups; ++i) {
      const float scale = scales[static_cast<size_t>(i)];
      const float inverse = scale != 0.0F ? 1.0F / scale : 0.0F;
      for (int64_t j = i * grid.group_size; j < (i + 1) * grid.group_size; ++j) {
        codes[static_cast<size_t>(j)] =
            static_cast<int8_t>(RoundToLevel(w[j] * inverse, low, high));
      }
    }
  });
  return PackCodes(n, k, scheme, codes, std::move(scales));
}

absl::StatusOr<std::vector<float>> OrdinaryScales(std::vector<float> scales, int64_t n,
                                                  int64_t num_groups, const WeightScheme& scheme) {
  if (static_cast<int64_t>(scales.size()) != n * num_groups) {
    return InvalidArgument("{} scales given, [{}, {}] are needed", scales.size(), n, num_groups);
  }
  const bool folded = scheme.bits == 4 && scheme.folded_scales;
  for (int64_t row = 0; row < n; ++row) {
    float* of_row = scales.data() + row * num_groups;
    bool has_tiny = false;
    for (int64_t group = 0; group < num_groups; ++group) {
      const float magnitude = std::abs(of_row[group]);
      if (!(magnitude < 1e36F)) {
        return InvalidArgument("scale [{}, {}] is {}, must be below 1e36 in magnitude", row, group,
                               of_row[group]);
      }
      if (magnitude >= 1e-36F || magnitude == 0.0F) continue;
      has_tiny = true;
      of_row[group] = 0.0F;
    }
    if (has_tiny && folded) std::fill_n(of_row, num_groups, 0.0F);
  }
  return scales;
}

absl::Status CheckFinite(const float* w, int64_t n, int64_t k, ThreadPool* pool) {
  std::atomic<int64_t> first_bad{n * k};  // the lowest, so that the message is deterministic
  pool->ParallelFor(n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * k; i < end * k; ++i) {
      if (std::abs(w[i]) <= kLargestWeight) continue;
      int64_t seen = first_bad.load();
      while (i < seen && !first_bad.compare_exchange_weak(seen, i)) {
      }
      return;
    }
  });
  if (const int64_t i = first_bad.load(); i < n * k) {
    return InvalidArgument("weight [{}, {}] is {}, the limit is {} either way", i / k, i % k, w[i],
                           kLargestWeight);
  }
  return absl::OkStatus();
}

absl::Status CheckMatrix(const Matrix& matrix, ThreadPool* pool) {
  NIBBLE_RETURN_IF_ERROR(Annotate(CheckShape(matrix.n, matrix.k), matrix.name));
  if (static_cast<int64_t>(matrix.weight.size()) != matrix.n * matrix.k) {
    return InvalidArgument("{}: {} weights, its shape [{}, {}] needs {}", matrix.name,
                           matrix.weight.size(), matrix.n, matrix.k, matrix.n * matrix.k);
  }
  return Annotate(CheckFinite(matrix.weight.data(), matrix.n, matrix.k, pool), matrix.name);
}

absl::StatusOr<double> OutputError(const float* w, const QuantizedWeight& quantized,
                                   const InputStatistics& statistics, ThreadPool* pool) {
  const auto [n, k] = std::visit([](const auto& q) { return std::pair(q.n, q.k); }, quantized);
  NIBBLE_RETURN_IF_ERROR(CheckStatistics("output error", statistics, k));
  NIBBLE_RETURN_IF_ERROR(CheckFinite(w, n, k, pool));
  NIBBLE_ASSIGN_OR_RETURN(const SubtractProductFunction subtract_product, ChooseSubtractProduct());
  const std::vector<float> values = Dequantize(quantized);
  std::vector<double> error(static_cast<size_t>(n));
  std::vector<double> signal(static_cast<size_t>(n));
  pool->ParallelFor(n, 32, [&](int64_t begin, int64_t end) {
    const auto size = static_cast<size_t>((end - begin) * k);
    std::vector<double> operand(size);
    for (size_t i = 0; i < size; ++i) operand[i] = w[begin * k + static_cast<int64_t>(i)];
    QuadraticForms(operand, statistics, subtract_product, signal.data() + begin);
    for (size_t i = 0; i < size; ++i) operand[i] -= values[static_cast<size_t>(begin * k) + i];
    QuadraticForms(operand, statistics, subtract_product, error.data() + begin);
  });
  return RelativeError(error, signal);
}

double RelativeError(const std::vector<double>& errors, const std::vector<double>& signals) {
  // Added in order, whatever thread computed them. A null space may leave a little below 0.
  double error = 0.0;
  double signal = 0.0;
  for (const double e : errors) error += e;
  for (const double s : signals) signal += s;
  return signal > 0.0 ? std::sqrt(std::max(error, 0.0) / signal) : 0.0;
}

}  // namespace nibble::quantize
