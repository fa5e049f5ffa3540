// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/statistics.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/check.h"
#include "kernels/gemm/gemm.h"

namespace nibble::quantize {
namespace {

// Columns of the Hessian computed at a time: only products of a panel with itself and the channels
// after it are, so that half of the work is left out where there are many panels.
constexpr int64_t kPanelColumns = 1024;

AlignedBuffer<float> Transposed(const float* rows, int64_t num_rows, int64_t k, ThreadPool* pool) {
  AlignedBuffer<float> out(static_cast<size_t>(num_rows * k));
  pool->ParallelFor(k, 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = 0; row < num_rows; ++row) {
      for (int64_t i = begin; i < end; ++i) out.data()[i * num_rows + row] = rows[row * k + i];
    }
  });
  return out;
}

}  // namespace

absl::Status SiteCollector::Observe(const float* rows, int64_t num_rows, int64_t k) {
  if (statistics_.k == 0) {
    const auto size = static_cast<size_t>(k);
    statistics_.k = k;
    statistics_.hessian.resize(size * size);
    statistics_.abs_max.resize(size);
    statistics_.abs_mean.resize(size);
  }
  NIBBLE_RETURN_IF_ERROR(AddMagnitudes(rows, num_rows));
  NIBBLE_RETURN_IF_ERROR(AddProducts(rows, num_rows));
  AddSamples(rows, num_rows);
  statistics_.num_tokens += num_rows;
  return absl::OkStatus();
}

absl::Status SiteCollector::AddMagnitudes(const float* rows, int64_t num_rows) {
  const int64_t k = statistics_.k;
  pool_->ParallelFor(k, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float max = statistics_.abs_max[static_cast<size_t>(i)];
      double sum = 0.0;
      for (int64_t row = 0; row < num_rows; ++row) {
        const float magnitude = std::fabs(rows[row * k + i]);
        max = std::max(max, magnitude);
        sum += magnitude;  // carries NaN and infinity, too
      }
      statistics_.abs_max[static_cast<size_t>(i)] = max;
      statistics_.abs_mean[static_cast<size_t>(i)] +=
          static_cast<float>(sum / static_cast<double>(options_.num_tokens));
    }
  });
  for (int64_t i = 0; i < k; ++i) {
    if (std::isfinite(statistics_.abs_mean[static_cast<size_t>(i)])) continue;
    return InvalidArgument(
        "the activations at {} are not finite (channel {}, in the calibration tokens {} to {})",
        ToString(site_), i, statistics_.num_tokens, statistics_.num_tokens + num_rows - 1);
  }
  return absl::OkStatus();
}

// hessian += rows^T rows / num_tokens; where it is above the diagonal's panel, Finish() fills in.
absl::Status SiteCollector::AddProducts(const float* rows, int64_t num_rows) {
  const int64_t k = statistics_.k;
  const AlignedBuffer<float> channels = Transposed(rows, num_rows, k, pool_);  // [k, num_rows]
  AlignedBuffer<float> products(static_cast<size_t>(k * std::min(k, kPanelColumns)));
  const double weight = 1.0 / static_cast<double>(options_.num_tokens);
  for (int64_t panel = 0; panel < k; panel += kPanelColumns) {
    const int64_t num_columns = std::min(kPanelColumns, k - panel);
    NIBBLE_ASSIGN_OR_RETURN(const auto packed,
                            kernels::PackDense(channels.data() + panel * num_rows, DType::kF32,
                                               num_columns, num_rows, DType::kF32, isa_, pool_));
    kernels::Run(*packed,
                 {.m = k - panel,
                  .a = channels.data() + panel * num_rows,
                  .a_stride = num_rows,
                  .d = products.data(),
                  .d_stride = num_columns},
                 pool_);
    pool_->ParallelFor(k - panel, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        double* const out = statistics_.hessian.data() + (panel + i) * k + panel;
        const float* const row = products.data() + i * num_columns;
        for (int64_t j = 0; j < num_columns; ++j) out[j] += weight * row[j];
      }
    });
  }
  return absl::OkStatus();
}

// Sample i is token i * num_tokens / num_samples.
void SiteCollector::AddSamples(const float* rows, int64_t num_rows) {
  const int64_t num_samples = std::min(options_.max_samples, options_.num_tokens);
  const int64_t first = statistics_.num_tokens;
  while (statistics_.num_samples < num_samples) {
    const int64_t token = statistics_.num_samples * options_.num_tokens / num_samples;
    if (token >= first + num_rows) return;
    const float* const row = rows + (token - first) * statistics_.k;
    statistics_.samples.insert(statistics_.samples.end(), row, row + statistics_.k);
    ++statistics_.num_samples;
  }
}

InputStatistics SiteCollector::Finish() {
  NIBBLE_CHECK(statistics_.num_tokens == 0 || statistics_.num_tokens == options_.num_tokens);
  const int64_t k = statistics_.k;
  std::vector<double>& hessian = statistics_.hessian;
  pool_->ParallelFor(k, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = i + 1; j < k; ++j) {
        // Within a panel both halves were computed, and are equal but for rounding.
        hessian[static_cast<size_t>(i * k + j)] = hessian[static_cast<size_t>(j * k + i)];
      }
    }
  });
  return std::move(statistics_);
}

BlockStatistics StatisticsCollector::Finish() {
  BlockStatistics statistics;
  for (const Site site : kSites) {
    StatisticsOf(site, &statistics) = collectors_[static_cast<size_t>(site)].Finish();
  }
  return statistics;
}

}  // namespace nibble::quantize
