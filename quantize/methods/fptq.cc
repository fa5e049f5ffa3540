// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/methods/fptq.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace nibble::quantize {
namespace {

// FPTQ's v0 and v1.
constexpr float kNarrowLimit = 15.0F;
constexpr float kMiddleLimit = 150.0F;

bool IsEqualized(FptqPolicy policy, const FptqSite& site) {
  switch (policy) {
    case FptqPolicy::kByRange:
      return site.range_class == RangeClass::kMiddle;
    case FptqPolicy::kWhereBetter:
      break;
  }
  return site.after.total() < site.before.total();
}

}  // namespace

std::string_view ToString(RangeClass range_class) {
  switch (range_class) {
    case RangeClass::kNarrow:
      return "narrow";
    case RangeClass::kMiddle:
      return "middle";
    case RangeClass::kWide:
      break;
  }
  return "wide";
}

RangeClass ClassifyRange(float range) {
  if (range < kNarrowLimit) return RangeClass::kNarrow;
  return range <= kMiddleLimit ? RangeClass::kMiddle : RangeClass::kWide;
}

std::vector<float> LogarithmicScale(const InputStatistics& statistics) {
  std::vector<float> scale;
  for (const float range : statistics.abs_max) {
    // Towards a range of 0 the formula goes to 0 itself, and all weights of the channel with it.
    scale.push_back(range > 0.0F ? range / std::log2(2.0F + range) : 1.0F);
  }
  return scale;
}

absl::StatusOr<std::vector<FptqSite>> EqualizeLogarithmic(const EqualizationContext& context,
                                                          FptqPolicy policy, BlockWeights* block,
                                                          BlockStatistics* statistics) {
  const AttentionShape& shape = context.shape;
  NIBBLE_RETURN_IF_ERROR(ValidateBlock(shape, *block));
  std::vector<FptqSite> sites;
  for (size_t i = 0; i < kSites.size(); ++i) {
    if (!context.sites[i]) continue;
    const Site name = kSites[i];
    const InputStatistics& inputs = StatisticsOf(name, *statistics);
    NIBBLE_RETURN_IF_ERROR(ValidateStatistics(inputs));
    FptqSite site;
    site.site = name;
    site.range = *std::max_element(inputs.abs_max.begin(), inputs.abs_max.end());
    site.range_class = ClassifyRange(site.range);
    if (name == Site::kQkv || name == Site::kGateUp) {
      NIBBLE_ASSIGN_OR_RETURN(
          const SiteErrorMeter meter,
          SiteErrorMeter::Create({.consumers = ConsumersOf(name, std::as_const(*block)),
                                  .statistics = &inputs,
                                  .scheme = context.schemes[i],
                                  .isa = context.isa},
                                 context.pool));
      std::vector<float> scale = LogarithmicScale(inputs);
      FitScale(name, shape, *block, &scale);
      NIBBLE_ASSIGN_OR_RETURN(site.before,
                              meter.Measure(std::vector<float>(scale.size(), 1.0F), context.pool));
      NIBBLE_ASSIGN_OR_RETURN(site.after, meter.Measure(scale, context.pool));
      site.equalized = IsEqualized(policy, site);
      if (site.equalized) site.scale = std::move(scale);
    }
    sites.push_back(std::move(site));
  }
  for (const FptqSite& site : sites) {
    if (!site.equalized) continue;
    NIBBLE_RETURN_IF_ERROR(ApplyScale(site.site, shape, site.scale, block));
    NIBBLE_RETURN_IF_ERROR(ScaleStatistics(site.scale, &StatisticsOf(site.site, statistics)));
  }
  return sites;
}

}  // namespace nibble::quantize
