// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/methods/awq.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace nibble::quantize {
namespace {

using Magnitude = SiteChange::Magnitude;

std::vector<float> Ones(const InputStatistics& statistics) {
  return std::vector<float>(static_cast<size_t>(statistics.k), 1.0F);
}

// Largest weight of every column over all consumers.
std::vector<float> ColumnMaxima(const std::vector<const Matrix*>& consumers) {
  const auto k = static_cast<size_t>(consumers.front()->k);
  std::vector<float> maxima(k);
  for (const Matrix* matrix : consumers) {
    for (size_t i = 0; i < matrix->weight.size(); ++i) {
      maxima[i % k] = std::max(maxima[i % k], std::abs(matrix->weight[i]));
    }
  }
  return maxima;
}

// Divides by the root of largest times least (AWQ's normalization): it leaves the products W * s in
// the middle of the range and does not change how anything rounds, unless s meets a limit.
// Channels of no magnitude are FitScale's to mend.
void Center(std::vector<float>* scale) {
  float least = INFINITY;
  float largest = 0.0F;
  for (const float s : *scale) {
    if (!(s > 0.0F) || !std::isfinite(s)) continue;
    least = std::min(least, s);
    largest = std::max(largest, s);
  }
  if (largest == 0.0F) return;
  const float middle = std::sqrt(least) * std::sqrt(largest);
  for (float& s : *scale) s /= middle;
}

std::vector<float> Candidate(Magnitude magnitude, double alpha, const InputStatistics& statistics,
                             const std::vector<float>& column_maxima) {
  std::vector<float> scale(column_maxima.size());
  for (size_t j = 0; j < scale.size(); ++j) {
    const double base =
        magnitude == Magnitude::kMean ? statistics.abs_mean[j] : statistics.abs_max[j];
    double s = std::pow(base, alpha);
    if (magnitude == Magnitude::kMaxOverWeights) s /= std::pow(column_maxima[j], 1.0 - alpha);
    scale[j] = static_cast<float>(s);
  }
  Center(&scale);
  return scale;
}

// The candidate of least error on some rows.
absl::StatusOr<SiteChange> BestCandidate(Site site, const EqualizationContext& context,
                                         const AwqOptions& options, const BlockWeights& block,
                                         const SiteErrorArgs& args) {
  SiteErrorArgs thinned = args;
  thinned.max_rows = options.max_rows;
  NIBBLE_ASSIGN_OR_RETURN(const SiteErrorMeter meter,
                          SiteErrorMeter::Create(std::move(thinned), context.pool));
  SiteChange best;
  best.site = site;
  NIBBLE_ASSIGN_OR_RETURN(best.before, meter.Measure(Ones(*args.statistics), context.pool));
  best.after = best.before;
  const std::vector<float> column_maxima = ColumnMaxima(args.consumers);
  for (const Magnitude magnitude :
       {Magnitude::kMean, Magnitude::kMax, Magnitude::kMaxOverWeights}) {
    for (int step = 1; step <= options.num_steps; ++step) {
      const double alpha = static_cast<double>(step) / options.num_steps;
      std::vector<float> scale = Candidate(magnitude, alpha, *args.statistics, column_maxima);
      FitScale(site, context.shape, block, &scale);
      NIBBLE_ASSIGN_OR_RETURN(const SiteError error, meter.Measure(scale, context.pool));
      if (!(error.total() < best.after.total())) continue;
      best.magnitude = magnitude;
      best.alpha = alpha;
      best.after = error;
      best.scale = std::move(scale);
    }
  }
  return best;
}

absl::StatusOr<SiteChange> SearchSite(size_t site_idx, const EqualizationContext& context,
                                      const AwqOptions& options, const BlockWeights& block,
                                      const InputStatistics& statistics) {
  const Site site = kSites[site_idx];
  const SiteErrorArgs args = {.consumers = ConsumersOf(site, block),
                              .statistics = &statistics,
                              .scheme = context.schemes[site_idx],
                              .isa = context.isa};
  NIBBLE_ASSIGN_OR_RETURN(SiteChange best, BestCandidate(site, context, options, block, args));
  const bool thinned =
      std::any_of(args.consumers.begin(), args.consumers.end(),
                  [&](const Matrix* matrix) { return matrix->n > options.max_rows; });
  if (!thinned) return best;
  NIBBLE_ASSIGN_OR_RETURN(const SiteErrorMeter meter, SiteErrorMeter::Create(args, context.pool));
  NIBBLE_ASSIGN_OR_RETURN(best.before, meter.Measure(Ones(statistics), context.pool));
  best.after = best.before;
  if (best.scale.empty()) return best;
  NIBBLE_ASSIGN_OR_RETURN(const SiteError after, meter.Measure(best.scale, context.pool));
  if (!(after.total() < best.before.total()))
    return SiteChange{.site = site, .before = best.before, .after = best.before};
  best.after = after;
  return best;
}

}  // namespace

absl::StatusOr<std::vector<SiteChange>> SearchScales(const EqualizationContext& context,
                                                     const AwqOptions& options, BlockWeights* block,
                                                     BlockStatistics* statistics) {
  constexpr int kMaxSteps = 1000;
  if (options.num_steps < 1 || options.num_steps > kMaxSteps) {
    return InvalidArgument("num_steps is {}, the range is 1..{}", options.num_steps, kMaxSteps);
  }
  if (options.max_rows < 1) return InvalidArgument("max_rows is {}, at least 1", options.max_rows);
  NIBBLE_RETURN_IF_ERROR(ValidateBlock(context.shape, *block));
  // A site's error is of its own columns and inputs, which the other sites' scales do not touch
  // (they divide rows of v and up): all are searched before any is applied.
  std::vector<SiteChange> changes;
  for (size_t i = 0; i < kSites.size(); ++i) {
    if (!context.sites[i]) continue;
    NIBBLE_ASSIGN_OR_RETURN(SiteChange change, SearchSite(i, context, options, *block,
                                                          StatisticsOf(kSites[i], *statistics)));
    changes.push_back(std::move(change));
  }
  for (const SiteChange& change : changes) {
    if (change.scale.empty()) continue;
    NIBBLE_RETURN_IF_ERROR(ApplyScale(change.site, context.shape, change.scale, block));
    NIBBLE_RETURN_IF_ERROR(ScaleStatistics(change.scale, &StatisticsOf(change.site, statistics)));
  }
  return changes;
}

}  // namespace nibble::quantize
