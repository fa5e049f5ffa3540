// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// GPTQ (arXiv:2210.17323, Cholesky form): weights are rounded column by column, and what rounding
// a column costs at the output of the layer is taken back by the columns not yet rounded.
//
//   NIBBLE_ASSIGN_OR_RETURN(HessianFactor factor,
//                           HessianFactor::Create("layer 0 q/k/v", statistics, {}, &pool));
//   for (const Matrix* matrix : {&q, &k, &v}) {  // all read the same activation
//     NIBBLE_ASSIGN_OR_RETURN(GptqResult result,
//                             QuantizeGptq(*matrix, statistics, factor, scheme, {}, &pool));
//   }
//
// Scales are fixed before the columns are rounded ("static groups"), so an order of columns by
// activation needs no index in the checkpoint and folded scales stay folded.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "quantize/methods/calibration_data.h"

namespace nibble::quantize {

struct DampingOptions {
  // Added to the diagonal of the Hessian, as a part of the mean of its diagonal. 0..1.
  double damping = 0.01;
  // Where the Hessian is not positive definite even so, the damping is raised tenfold, up to this.
  double max_damping = 1.0;
  // Columns are rounded in the order of falling diagonal of the Hessian, not as they lie.
  bool activation_order = true;
};

// Upper triangular U with U^T U = (H + damping)^-1, rows and columns in rounding order. Of the
// memory of one Hessian.
class HessianFactor {
 public:
  // `name` is for messages. INVALID_ARGUMENT for statistics or options out of range,
  // FAILED_PRECONDITION naming the last damping tried when the Hessian stays indefinite,
  // RESOURCE_EXHAUSTED when memory runs out.
  static absl::StatusOr<HessianFactor> Create(std::string_view name,
                                              const InputStatistics& statistics,
                                              const DampingOptions& options, ThreadPool* pool);

  int64_t k() const { return static_cast<int64_t>(order_.size()); }
  // order()[i] is the column rounded in turn i.
  const std::vector<int32_t>& order() const { return order_; }
  // Row i of U, from its diagonal: k() - i numbers.
  const double* Row(int64_t i) const { return factor_.data() + i * k() + i; }
  // Columns that no calibration token used (diagonal 0). They are rounded to nearest.
  int64_t num_dead_columns() const { return num_dead_columns_; }
  bool IsDead(int64_t column) const { return dead_[static_cast<size_t>(column)]; }
  // The damping it took.
  double damping() const { return damping_; }

 private:
  HessianFactor() = default;

  std::vector<int32_t> order_;
  std::vector<bool> dead_;
  std::vector<double> factor_;  // [k, k] row-major, zeros below the diagonal
  int64_t num_dead_columns_ = 0;
  double damping_ = 0.0;
};

struct GptqOptions {
  // Scales to round within, as ClipResult::scales. null: those of SearchClipping. The caller keeps
  // them.
  const std::vector<float>* scales = nullptr;
};

struct GptqResult {
  QuantizedWeight weight;
  double output_error = 0.0;  // OutputError of `weight`
};

// INVALID_ARGUMENT for weights that are not finite, statistics, factor, scales or scheme that do
// not fit; RESOURCE_EXHAUSTED when memory runs out; messages name the matrix.
absl::StatusOr<GptqResult> QuantizeGptq(const Matrix& matrix, const InputStatistics& statistics,
                                        const HessianFactor& factor, const WeightScheme& scheme,
                                        const GptqOptions& options, ThreadPool* pool);

}  // namespace nibble::quantize
