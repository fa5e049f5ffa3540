// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// AWQ's search for scales (arXiv:2306.00978, §3.2): channels that see large activations are scaled
// up before their weights are rounded, by s = magnitude^alpha, alpha of a grid by what the rounded
// layers then cost at their outputs. Here that cost also has the rounding of activations to int8
// (site_error.h), for which scales help or harm as much as for weights.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "quantize/methods/calibration_data.h"
#include "quantize/methods/equalization.h"
#include "quantize/methods/site_error.h"

namespace nibble::quantize {

struct AwqOptions {
  int num_steps = 20;  // alpha = 1/num_steps, 2/num_steps ... 1; 1..1000
  // Candidates are compared on at most so many output channels of each consumer, evenly spaced:
  // the best hardly depends on more, and the search of a large model does. What is taken is then
  // measured on all. 1 or more.
  int64_t max_rows = 512;
};

// What a search did to one site.
struct SiteChange {
  // Magnitude that alpha is an exponent of. kMaxOverWeights is SmoothQuant's (arXiv:2211.10438):
  // max|x|^alpha / max|w|^(1 - alpha), w the channel's column over all consumers.
  enum class Magnitude { kNone, kMean, kMax, kMaxOverWeights };

  Site site = Site::kQkv;
  Magnitude magnitude = Magnitude::kNone;  // kNone: no scale was better than none
  double alpha = 0.0;
  SiteError before;  // of all output channels
  SiteError after;
  std::vector<float> scale;  // as applied; empty for kNone
};

// Searches every site that the context names and applies what is found to `block` and `statistics`.
// A site whose error no scale lowers stays as it is. One entry per site searched, in kSites' order.
// INVALID_ARGUMENT for sizes that do not fit together, changing nothing. Deterministic.
absl::StatusOr<std::vector<SiteChange>> SearchScales(const EqualizationContext& context,
                                                     const AwqOptions& options, BlockWeights* block,
                                                     BlockStatistics* statistics);

}  // namespace nibble::quantize
