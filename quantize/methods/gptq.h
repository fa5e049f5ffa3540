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
// activation needs no index in the checkpoint and folded scales stay folded. Afterwards codes and
// channel scales are refined in turn: each code moves to the level that is best given all others,
// each channel is scaled by what is best given its codes. No step raises the error of the output
// with the factor's damping counted in.
//
// Memory: the Hessian (8 k^2 bytes; 1.6 GB at k = 14336) and its factor (as much), the weights, and
// for each thread 32 rows of doubles thrice.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "quantize/methods/calibration_data.h"
#include "quantize/methods/hessian_factor.h"

namespace nibble::quantize {

struct GptqOptions {
  // Scales to start from, as ClipResult::scales. null: those of QuantizeRtnMatrix. The
  // caller keeps them.
  const std::vector<float>* scales = nullptr;
  // Rounds each row at several channel scales around the given and keeps the best.
  bool search_channel_scale = true;
  // Rounds of refinement, each of the channel scales (not the first) and then of the codes, until
  // nothing changes. 0: plain GPTQ.
  int refinement_rounds = 4;
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
