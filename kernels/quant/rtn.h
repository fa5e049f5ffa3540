// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Round-to-nearest quantization of weights to 4 bits with group scales that fold exactly.
#pragma once

#include <cstdint>

#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "kernels/quant/int4_weight.h"

namespace nibble::kernels {

struct RtnOptions {
  int64_t group_size = 128;
  // true: scales are S * c[n] with S in 1..16 or -15..-1 (ScaleForm::kFolded); c[n] and each S are
  // searched for the least squared error of the channel. false: free float scales, the measure of
  // what folding costs.
  bool folded_scales = true;
  Isa isa = Isa::kRef;  // all give the same bits
};

// Quantizes weights [n, k] row-major, symmetric, codes 0..15 around 8. Scales have either sign: the
// levels -8..7 reach further on one side, and each group turns that side to where its weights need
// it. INVALID_ARGUMENT for NaN, infinity or an absolute value above 1e15 (naming the coordinate)
// and a group size that does not fit. Deterministic: independent of threads and instruction set.
absl::StatusOr<Int4Weight> QuantizeRtn(const float* weights, int64_t n, int64_t k,
                                       const RtnOptions& options, ThreadPool* pool);

}  // namespace nibble::kernels
