// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Rounding of one weight matrix to a scheme, and what a rounding costs at the output of its layer.
//
//   NIBBLE_ASSIGN_OR_RETURN(QuantizedWeight q, QuantizeRtnMatrix(w, n, k, scheme, &pool));
//   NIBBLE_ASSIGN_OR_RETURN(double error, OutputError(w, q, statistics, &pool));
//
// Everything here and in clip.h and gptq.h is deterministic: independent of the number of threads.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "quantize/methods/calibration_data.h"

namespace nibble::quantize {

// Whether matrices of k input channels can be rounded to `scheme`: bits 4 or 8, a group size that
// divides k. INVALID_ARGUMENT naming value and limit.
absl::Status CheckScheme(const WeightScheme& scheme, int64_t k);

// Whether `statistics` can stand for the inputs of a matrix of k input channels: a whole Hessian of
// finite numbers with no negative diagonal. INVALID_ARGUMENT naming `name` and what is wrong.
absl::Status CheckStatistics(std::string_view name, const InputStatistics& statistics, int64_t k);

// Round to nearest. bits == 4: scales searched for the least squared error of the weights
// (kernels/quant/rtn.h). bits == 8: scale = max|row| / 127. INVALID_ARGUMENT for NaN or infinity
// (naming the coordinate) and for a scheme that does not fit.
absl::StatusOr<QuantizedWeight> QuantizeRtnMatrix(const float* w, int64_t n, int64_t k,
                                                  const WeightScheme& scheme, ThreadPool* pool);

// Round to nearest with scales that are given: [n, k / group_size] where bits == 4, [n] where 8.
// A scale of 0, or below 1e-36, gives codes of 0.
absl::StatusOr<QuantizedWeight> RoundToScales(const float* w, int64_t n, int64_t k,
                                              const WeightScheme& scheme,
                                              const std::vector<float>& scales, ThreadPool* pool);

// Relative error of the layer's output on the calibration inputs:
//   sqrt(tr(D H D^T) / tr(W H W^T)),  D = W - quantized;  0 where W's own output is 0.
absl::StatusOr<double> OutputError(const float* w, const QuantizedWeight& quantized,
                                   const InputStatistics& statistics, ThreadPool* pool);

}  // namespace nibble::quantize
