// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/block_quantizer.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "quantize/methods/awq.h"
#include "quantize/methods/clip.h"
#include "quantize/methods/fptq.h"
#include "quantize/methods/gptq.h"
#include "quantize/methods/rounding.h"

namespace nibble::quantize {
namespace {

using kernels::Int4Weight;
using kernels::Int8Weight;

double SecondsSince(int64_t start_ns) {
  return static_cast<double>(Clock::Monotonic().NowNs() - start_ns) * 1e-9;
}

const std::vector<float>& ScalesOf(const QuantizedWeight& weight) {
  return std::visit([](const auto& value) -> const std::vector<float>& { return value.scales; },
                    weight);
}

double BitsPerWeight(const QuantizedWeight& weight) {
  return std::visit(
      [](const auto& value) {
        const double bits = 8.0 * static_cast<double>(value.codes.size()) +
                            32.0 * static_cast<double>(value.scales.size());
        return bits / (static_cast<double>(value.n) * static_cast<double>(value.k));
      },
      weight);
}

struct WeightError {
  double norm = 0.0;
  double error = 0.0;  // relative
};

// Rows are summed in order, whatever thread did them.
WeightError MeasureWeightError(const Matrix& matrix, const QuantizedWeight& weight,
                               ThreadPool* pool) {
  const std::vector<float> rounded = Dequantize(weight);
  std::vector<std::pair<double, double>> rows(static_cast<size_t>(matrix.n));
  pool->ParallelFor(matrix.n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      double error = 0.0;
      double norm = 0.0;
      for (int64_t i = row * matrix.k; i < (row + 1) * matrix.k; ++i) {
        const double value = matrix.weight[static_cast<size_t>(i)];
        const double difference = value - rounded[static_cast<size_t>(i)];
        error += difference * difference;
        norm += value * value;
      }
      rows[static_cast<size_t>(row)] = {error, norm};
    }
  });
  double error = 0.0;
  double norm = 0.0;
  for (const auto& [row_error, row_norm] : rows) {
    error += row_error;
    norm += row_norm;
  }
  return {.norm = std::sqrt(norm), .error = norm > 0.0 ? std::sqrt(error / norm) : 0.0};
}

class BlockQuantizer {
 public:
  BlockQuantizer(BlockWeights block, BlockStatistics* statistics, const AttentionShape& shape,
                 const BlockQuantizerOptions& options, const StepCallback& on_step,
                 LayerReport* report, ThreadPool* pool)
      : block_(std::move(block)),
        statistics_(statistics),
        shape_(shape),
        options_(options),
        on_step_(on_step),
        report_(report),
        pool_(pool) {}

  absl::StatusOr<QuantizedBlock> Run();

 private:
  WeightScheme SchemeFor(int64_t k) const {
    return SchemeOf(options_.scheme, options_.group_size, k);
  }
  EqualizationContext Context() const {
    EqualizationContext context = {.shape = shape_, .isa = options_.isa, .pool = pool_};
    for (const Site site : kSites) {
      context.schemes[static_cast<size_t>(site)] = SchemeFor(StatisticsOf(site, *statistics_).k);
    }
    return context;
  }
  absl::Status MeasureBefore();
  absl::Status Equalize();
  absl::Status EqualizeAwq();
  absl::Status EqualizeFptq();
  absl::StatusOr<std::vector<float>> ScalesFor(const Matrix& matrix,
                                               const InputStatistics& statistics);
  struct Rounded {
    QuantizedWeight weight;
    double output_error = 0.0;
  };
  absl::StatusOr<Rounded> Round(const Matrix& matrix, Site site);
  absl::Status RoundAll();
  void Step(std::string_view step, double share) const {
    if (on_step_) on_step_(step, share);
  }

  BlockWeights block_;
  BlockStatistics* statistics_;
  const AttentionShape shape_;
  const BlockQuantizerOptions& options_;
  const StepCallback& on_step_;
  LayerReport* report_;
  ThreadPool* pool_;
  std::array<QuantizedWeight, kNumMatrices> rounded_;
  std::optional<Site> factor_site_;  // of factor_
  std::optional<HessianFactor> factor_;
};

absl::StatusOr<QuantizedBlock> BlockQuantizer::Run() {
  NIBBLE_RETURN_IF_ERROR(MeasureBefore());
  if (!options_.recipe.IsRtn()) {
    NIBBLE_RETURN_IF_ERROR(Equalize());
    NIBBLE_RETURN_IF_ERROR(RoundAll());
  }
  for (Matrix* matrix : Matrices(block_)) matrix->weight = {};
  return QuantizedBlock{.weights = std::move(block_), .matrices = std::move(rounded_)};
}

// Rounds to nearest. Where that is the recipe, before is after.
absl::Status BlockQuantizer::MeasureBefore() {
  report_->layer_idx = block_.layer_idx;
  const auto matrices = Matrices(std::as_const(block_));
  for (size_t i = 0; i < kNumMatrices; ++i) {
    const Matrix& matrix = *matrices[i];
    Step("rtn", 0.2 * static_cast<double>(i) / kNumMatrices);
    const int64_t start_ns = Clock::Monotonic().NowNs();
    auto rounded =
        QuantizeRtnMatrix(matrix.weight.data(), matrix.n, matrix.k, SchemeFor(matrix.k), pool_);
    if (!rounded.ok()) return Annotate(rounded.status(), matrix.name);
    rounded_[i] = std::move(rounded).value();
    ModuleReport module = {.name = matrix.name, .n = matrix.n, .k = matrix.k};
    module.seconds = SecondsSince(start_ns);
    module.bits_per_weight = BitsPerWeight(rounded_[i]);
    const WeightError error = MeasureWeightError(matrix, rounded_[i], pool_);
    module.weight_norm = error.norm;
    module.weight_error = module.weight_error_before = error.error;
    if (statistics_ != nullptr) {
      const InputStatistics& statistics = StatisticsOf(kSiteOfMatrix[i], *statistics_);
      auto output = OutputError(matrix.weight.data(), rounded_[i], statistics, pool_);
      if (!output.ok()) return Annotate(output.status(), matrix.name);
      module.output_error = module.output_error_before = *output;
    }
    report_->modules.push_back(std::move(module));
  }
  if (statistics_ == nullptr) return absl::OkStatus();
  for (const Site site : kSites) {
    const std::vector<float>& abs_max = StatisticsOf(site, *statistics_).abs_max;
    const float max = *std::max_element(abs_max.begin(), abs_max.end());
    report_->sites.push_back({.name = std::string(ToString(site)),
                              .abs_max = max,
                              .range = std::string(ToString(ClassifyRange(max))),
                              .equalization = "none",
                              .abs_max_after = max});
  }
  return absl::OkStatus();
}

absl::Status BlockQuantizer::Equalize() {
  if (options_.recipe.equalization == Equalization::kNone) return absl::OkStatus();
  const bool awq = options_.recipe.equalization == Equalization::kAwq;
  Step(awq ? "awq" : "fptq", 0.2);
  NIBBLE_RETURN_IF_ERROR(awq ? EqualizeAwq() : EqualizeFptq());
  for (const Site site : kSites) {
    const std::vector<float>& abs_max = StatisticsOf(site, *statistics_).abs_max;
    report_->sites[static_cast<size_t>(site)].abs_max_after =
        *std::max_element(abs_max.begin(), abs_max.end());
  }
  return absl::OkStatus();
}

absl::Status BlockQuantizer::EqualizeAwq() {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<SiteChange> changes,
                          SearchScales(Context(), {}, &block_, statistics_));
  for (const SiteChange& change : changes) {
    std::string& text = report_->sites[static_cast<size_t>(change.site)].equalization;
    switch (change.magnitude) {
      case SiteChange::Magnitude::kNone:
        break;
      case SiteChange::Magnitude::kMean:
        text = fmt::format("mean^{:.2f}", change.alpha);
        break;
      case SiteChange::Magnitude::kMax:
        text = fmt::format("max^{:.2f}", change.alpha);
        break;
      case SiteChange::Magnitude::kMaxOverWeights:
        text = fmt::format("max^{:.2f}/w^{:.2f}", change.alpha, 1.0 - change.alpha);
        break;
    }
  }
  return absl::OkStatus();
}

absl::Status BlockQuantizer::EqualizeFptq() {
  NIBBLE_ASSIGN_OR_RETURN(
      const std::vector<FptqSite> sites,
      EqualizeLogarithmic(Context(), FptqPolicy::kWhereBetter, &block_, statistics_));
  for (const FptqSite& site : sites) {
    if (!site.equalized) continue;
    report_->sites[static_cast<size_t>(site.site)].equalization = "logarithmic";
  }
  return absl::OkStatus();
}

absl::Status BlockQuantizer::RoundAll() {
  const auto matrices = Matrices(std::as_const(block_));
  for (size_t i = 0; i < kNumMatrices; ++i) {
    const Matrix& matrix = *matrices[i];
    const std::string_view name = matrix.name;
    Step(name.substr(name.rfind('.') + 1), 0.4 + 0.6 * static_cast<double>(i) / kNumMatrices);
    const int64_t start_ns = Clock::Monotonic().NowNs();
    NIBBLE_ASSIGN_OR_RETURN(Rounded rounded, Round(matrix, kSiteOfMatrix[i]));
    rounded_[i] = std::move(rounded.weight);
    ModuleReport& module = report_->modules[i];
    module.seconds = SecondsSince(start_ns);
    module.output_error = rounded.output_error;
    module.bits_per_weight = BitsPerWeight(rounded_[i]);
    module.weight_error = MeasureWeightError(matrix, rounded_[i], pool_).error;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<float>> BlockQuantizer::ScalesFor(const Matrix& matrix,
                                                             const InputStatistics& statistics) {
  if (options_.recipe.clip) {
    NIBBLE_ASSIGN_OR_RETURN(ClipResult clip,
                            SearchClipping(matrix, statistics, SchemeFor(matrix.k), pool_));
    return std::move(clip.scales);
  }
  NIBBLE_ASSIGN_OR_RETURN(
      const QuantizedWeight rounded,
      QuantizeRtnMatrix(matrix.weight.data(), matrix.n, matrix.k, SchemeFor(matrix.k), pool_));
  return ScalesOf(rounded);
}

absl::StatusOr<BlockQuantizer::Rounded> BlockQuantizer::Round(const Matrix& matrix, Site site) {
  const InputStatistics& statistics = StatisticsOf(site, *statistics_);
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> scales, ScalesFor(matrix, statistics));
  if (options_.recipe.rounding == Rounding::kRtn) {
    Rounded rounded;
    NIBBLE_ASSIGN_OR_RETURN(rounded.weight, RoundToScales(matrix.weight.data(), matrix.n, matrix.k,
                                                          SchemeFor(matrix.k), scales, pool_));
    NIBBLE_ASSIGN_OR_RETURN(rounded.output_error,
                            OutputError(matrix.weight.data(), rounded.weight, statistics, pool_));
    return rounded;
  }
  if (factor_site_ != site) {
    factor_.reset();
    NIBBLE_ASSIGN_OR_RETURN(factor_, HessianFactor::Create(matrix.name, statistics, {}, pool_));
    factor_site_ = site;
  }
  NIBBLE_ASSIGN_OR_RETURN(
      GptqResult result,
      QuantizeGptq(matrix, statistics, *factor_, SchemeFor(matrix.k), {.scales = &scales}, pool_));
  return Rounded{.weight = std::move(result.weight), .output_error = result.output_error};
}

}  // namespace

AttentionShape AttentionShapeOf(const engine::ModelConfig& config) {
  return {.num_heads = config.num_heads,
          .num_kv_heads = config.num_kv_heads,
          .head_dim = config.head_dim};
}

absl::StatusOr<QuantizedBlock> QuantizeBlock(BlockWeights block, BlockStatistics* statistics,
                                             const AttentionShape& shape,
                                             const BlockQuantizerOptions& options,
                                             const StepCallback& on_step, LayerReport* report,
                                             ThreadPool* pool) {
  return BlockQuantizer(std::move(block), statistics, shape, options, on_step, report, pool).Run();
}

}  // namespace nibble::quantize
