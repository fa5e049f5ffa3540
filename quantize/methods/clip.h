// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Searched weight clipping (the learned bounds of OdysseyLLM, arXiv:2311.09550, and the search of
// AWQ, arXiv:2306.00978): the scale of each group, or of each channel, at which rounding costs
// least at the output of the layer. A smaller scale clips the group's largest weights and rounds
// all others finer.
//
// The result is a set of scales. Rounding takes it in two ways:
//   RoundToScales(w, n, k, scheme, clip.scales, pool)    round to nearest within the bounds
//   QuantizeGptq(..., {.scales = &clip.scales}, pool)    GPTQ within the bounds
// The bounds themselves are -8 and 7 (or -127 and 127) times the scale.
#pragma once

#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "quantize/methods/calibration_data.h"

namespace nibble::quantize {

struct ClipResult {
  // [n, k / group_size] (bits == 4) or [n] (bits == 8), as the scheme wants them: S * c[n] where
  // scales are folded, of either sign where bits == 4.
  std::vector<float> scales;
};

// Minimizes, for every channel, the squared rounding errors weighted by the diagonal of the
// Hessian. INVALID_ARGUMENT for weights that are not finite, statistics or a scheme that do not
// fit; messages name the matrix.
absl::StatusOr<ClipResult> SearchClipping(const Matrix& matrix, const InputStatistics& statistics,
                                          const WeightScheme& scheme, ThreadPool* pool);

}  // namespace nibble::quantize
