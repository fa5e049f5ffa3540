// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What rounding to nearest costs at the outputs of a site's consumers, for any scale that the site
// could be given: the measure that searches over scales minimize.
//
//   NIBBLE_ASSIGN_OR_RETURN(SiteErrorMeter meter, SiteErrorMeter::Create(args, &pool));
//   NIBBLE_ASSIGN_OR_RETURN(SiteError plain, meter.Measure(ones, &pool));
//   NIBBLE_ASSIGN_OR_RETURN(SiteError scaled, meter.Measure(scale, &pool));
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "kernels/gemm/gemm.h"
#include "quantize/methods/calibration_data.h"

namespace nibble::quantize {

// Squared errors over the square of the output, each a mean over the consumers (so that the small
// outputs of k and v count as much as those of q).
struct SiteError {
  double weights = 0.0;      // tr(D H D^T) / tr(W H W^T), D = rounded(W * s) / s - W
  double activations = 0.0;  // mean |(int8(x / s) - x / s) rounded(W * s)^T|^2 over the samples; 0
                             // where activations stay 16 bit
  double total() const { return weights + activations; }
};

struct SiteErrorArgs {
  std::vector<const Matrix*> consumers;         // all of one k; outlive the meter
  const InputStatistics* statistics = nullptr;  // with a Hessian; outlives the meter
  WeightScheme scheme;
  int64_t max_rows = 0;  // measure only so many rows of each consumer, evenly spaced; 0: all
  Isa isa = Isa::kRef;
};

class SiteErrorMeter {
 public:
  // INVALID_ARGUMENT for statistics that do not fit, have no Hessian, or, where the scheme rounds
  // activations, no samples.
  static absl::StatusOr<SiteErrorMeter> Create(SiteErrorArgs args, ThreadPool* pool);

  // Of the consumers with columns times scale [k], inputs divided by it. Deterministic.
  absl::StatusOr<SiteError> Measure(const std::vector<float>& scale, ThreadPool* pool) const;

 private:
  SiteErrorMeter() = default;
  // [num_samples, k] int8(x / s) - x / s.
  std::vector<float> ActivationErrors(const std::vector<float>& scale, ThreadPool* pool) const;

  SiteErrorArgs args_;
  std::vector<Matrix> thinned_;  // consumers of more than max_rows rows: those measured
  std::unique_ptr<kernels::PackedWeight> hessian_;  // symmetric: as B of D = A B^T
  std::vector<double> energies_;                    // tr(W H W^T) of every consumer
};

}  // namespace nibble::quantize
