// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// FPTQ's logarithmic activation equalization (arXiv:2308.15987): s = max|x| / log2(2 + max|x|), so
// that a channel of largest activation a keeps log2(2 + a) of it, at the sites whose producer is a
// norm: q/k/v and gate/up.
//
// FPTQ chooses a layer's activation quantization by the range v of its input: static per tensor
// below 15, equalized and then static from 15 to 150, dynamic per token above. nibble's engine
// quantizes every activation per token as it is produced, which costs nothing there (fused into the
// norm or SwiGLU) and is the finest of the three; what is left of the policy is where to equalize.
// The class of every site is reported.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "quantize/methods/calibration_data.h"
#include "quantize/methods/equalization.h"
#include "quantize/methods/site_error.h"

namespace nibble::quantize {

enum class RangeClass {
  kNarrow,  // v < 15
  kMiddle,  // 15 <= v <= 150: the one FPTQ equalizes
  kWide,    // v > 150
};

std::string_view ToString(RangeClass range_class);  // "narrow", "middle", "wide"
RangeClass ClassifyRange(float range);

// s of every channel; 1 for a channel that was never active.
std::vector<float> LogarithmicScale(const InputStatistics& statistics);

enum class FptqPolicy {
  kWhereBetter,  // where it lowers the error of the site, whatever the range
  kByRange,      // the paper's: sites of the middle range, whatever it does to the error
};

// One site as FPTQ left it.
struct FptqSite {
  Site site = Site::kQkv;
  float range = 0.0F;  // v: the largest activation, before
  RangeClass range_class = RangeClass::kNarrow;
  bool equalized = false;
  // Of no scale and of the logarithmic one; only for q/k/v and gate/up.
  SiteError before;
  SiteError after;
  std::vector<float> scale;  // as applied; empty unless equalized
};

// Equalizes `block` and `statistics`; an entry for each of the context's sites in kSites' order.
// INVALID_ARGUMENT for sizes that do not fit together, changing nothing. Deterministic.
absl::StatusOr<std::vector<FptqSite>> EqualizeLogarithmic(const EqualizationContext& context,
                                                          FptqPolicy policy, BlockWeights* block,
                                                          BlockStatistics* statistics);

}  // namespace nibble::quantize
