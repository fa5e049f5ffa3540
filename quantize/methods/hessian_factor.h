// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The factor of a layer's inverse Hessian, by which GPTQ spreads rounding errors. Matrices that
// read the same activation share it.
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
  // damping..1e6.
  double max_damping = 1.0;
  // Columns are rounded in the order of falling diagonal of the Hessian, not as they lie.
  bool activation_order = true;
};

// Upper triangular U with U^T U = (H + damping)^-1, rows and columns in rounding order. A column
// that no calibration token used (diagonal 0) is on its own: rounded to nearest. Takes the
// memory of one Hessian, and nothing of that size besides while it is made.
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
  // U, [k, k] row-major, zeros below the diagonal.
  const double* data() const { return factor_.data(); }
  // The damping it took, as a part of the mean of the diagonal, and what that added to each.
  double damping() const { return damping_; }
  double added() const { return added_; }

 private:
  HessianFactor() = default;

  std::vector<int32_t> order_;
  std::vector<double> factor_;
  double damping_ = 0.0;
  double added_ = 0.0;
};

}  // namespace nibble::quantize
