// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/block_quantizer.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "quantize/methods/awq.h"
#include "quantize/methods/clip.h"
#include "quantize/methods/fptq.h"
#include "quantize/methods/gptq.h"
#include "quantize/methods/rounding.h"
#include "quantize/module_error.h"

namespace nibble::quantize {
namespace {

double SecondsSince(int64_t start_ns) {
  return static_cast<double>(Clock::Monotonic().NowNs() - start_ns) * 1e-9;
}

const std::vector<float>& ScalesOf(const QuantizedWeight& weight) {
  return std::visit([](const auto& value) -> const std::vector<float>& { return value.scales; },
                    weight);
}

// Matrices that are quantized together, and the sites that they read.
struct Part {
  std::vector<Matrix*> matrices;
  size_t first_matrix = 0;  // of these, in Matrices()
  std::vector<Site> sites;
  std::array<bool, 4> equalized_sites = {};  // of kSites
  std::string prefix;                        // of the sites' names in the report
  double begin = 0.0;                        // of the layer's steps, for progress
  double end = 1.0;
};

class BlockQuantizer {
 public:
  BlockQuantizer(BlockToQuantize block, const AttentionShape& shape,
                 const BlockQuantizerOptions& options, const StepCallback& on_step,
                 LayerReport* report, ThreadPool* pool)
      : block_(std::move(block.weights)),
        statistics_(block.statistics),
        read_expert_(std::move(block.read_expert)),
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
  EqualizationContext Context(const Part& part) const {
    EqualizationContext context = {
        .shape = shape_, .sites = part.equalized_sites, .isa = options_.isa, .pool = pool_};
    for (const Site site : part.sites) {
      context.schemes[static_cast<size_t>(site)] = SchemeFor(StatisticsOf(site, *statistics_).k);
    }
    return context;
  }
  absl::Status QuantizeAttention(double end);
  absl::Status QuantizeDense(double begin);
  absl::Status QuantizeExperts(double begin);
  absl::Status QuantizeExpert(size_t expert_idx, double begin, double end);

  absl::Status Quantize(const Part& part);
  absl::Status MeasureBefore(const Part& part);
  absl::Status Equalize(const Part& part);
  absl::Status EqualizeAwq(const Part& part);
  absl::Status EqualizeFptq(const Part& part);
  absl::StatusOr<std::vector<float>> ScalesFor(const Matrix& matrix,
                                               const InputStatistics& statistics);
  struct Rounded {
    QuantizedWeight weight;
    double output_error = 0.0;
  };
  absl::StatusOr<Rounded> Round(const Matrix& matrix, Site site);
  absl::Status RoundAll(const Part& part);
  // The report of a site of `part`, which has the last ones.
  SiteReport& ReportOf(const Part& part, Site site) {
    const auto idx = std::find(part.sites.begin(), part.sites.end(), site) - part.sites.begin();
    return report_->sites[report_->sites.size() - part.sites.size() + static_cast<size_t>(idx)];
  }
  void Step(const Part& part, std::string_view step, double share) const {
    if (on_step_) on_step_(step, part.begin + (part.end - part.begin) * share);
  }

  BlockWeights block_;
  BlockStatistics* statistics_;
  const ExpertSource read_expert_;
  const AttentionShape shape_;
  const BlockQuantizerOptions& options_;
  const StepCallback& on_step_;
  LayerReport* report_;
  ThreadPool* pool_;
  std::vector<QuantizedWeight> rounded_;  // of Matrices(), so far
  std::optional<Site> factor_site_;       // of factor_
  std::optional<HessianFactor> factor_;
};

absl::StatusOr<QuantizedBlock> BlockQuantizer::Run() {
  report_->layer_idx = block_.layer_idx;
  const size_t num_matrices = Matrices(block_).size();
  const double attention =
      static_cast<double>(kAttentionMatrices) / static_cast<double>(num_matrices);
  NIBBLE_RETURN_IF_ERROR(QuantizeAttention(attention));
  NIBBLE_RETURN_IF_ERROR(block_.moe ? QuantizeExperts(attention) : QuantizeDense(attention));
  for (Matrix* matrix : Matrices(block_)) matrix->weight = {};
  return QuantizedBlock{.weights = std::move(block_), .matrices = std::move(rounded_)};
}

absl::Status BlockQuantizer::QuantizeAttention(double end) {
  return Quantize({.matrices = {&block_.q, &block_.k, &block_.v, &block_.o},
                   .first_matrix = 0,
                   .sites = {Site::kQkv, Site::kO},
                   .equalized_sites = {true, true, false, false},
                   .prefix = "",
                   .begin = 0.0,
                   .end = end});
}

absl::Status BlockQuantizer::QuantizeDense(double begin) {
  return Quantize({.matrices = {&block_.gate, &block_.up, &block_.down},
                   .first_matrix = kAttentionMatrices,
                   .sites = {Site::kGateUp, Site::kDown},
                   .equalized_sites = {false, false, true, true},
                   .prefix = "",
                   .begin = begin,
                   .end = 1.0});
}

absl::Status BlockQuantizer::QuantizeExperts(double begin) {
  const size_t num_experts = block_.moe->experts.size();
  const auto end_of = [&](size_t e) {
    return begin + (1.0 - begin) * static_cast<double>(e) / static_cast<double>(num_experts);
  };
  for (size_t e = 0; e < num_experts; ++e) {
    NIBBLE_RETURN_IF_ERROR(QuantizeExpert(e, end_of(e), end_of(e + 1)));
  }
  return absl::OkStatus();
}

absl::Status BlockQuantizer::QuantizeExpert(size_t expert_idx, double begin, double end) {
  if (on_step_) on_step_(fmt::format("expert {}", expert_idx), begin);
  NIBBLE_ASSIGN_OR_RETURN(Expert expert, read_expert_(expert_idx));
  // The block's network for now.
  static_cast<FeedForward&>(block_) = std::move(expert.weights);
  if (statistics_ != nullptr) {
    statistics_->gate_up = std::move(expert.statistics->gate_up);
    statistics_->down = std::move(expert.statistics->down);
    report_->experts.push_back(
        {.num_tokens = expert.statistics->num_tokens, .all_tokens = expert.statistics->all_tokens});
  }
  factor_site_.reset();
  const bool is_shared = static_cast<int64_t>(expert_idx) == block_.moe->num_routed();
  NIBBLE_RETURN_IF_ERROR(
      Quantize({.matrices = {&block_.gate, &block_.up, &block_.down},
                .first_matrix = kAttentionMatrices + expert_idx * kFeedForwardMatrices,
                .sites = {Site::kGateUp, Site::kDown},
                .equalized_sites = {false, false, false, true},
                .prefix = is_shared ? "shared_expert." : fmt::format("experts.{}.", expert_idx),
                .begin = begin,
                .end = end}));
  // Biases that equalization changed stay; weights are codes now.
  FeedForward& network = block_;
  for (Matrix* matrix : {&network.gate, &network.up, &network.down}) matrix->weight = {};
  block_.moe->experts[expert_idx] = std::exchange(network, {});
  if (statistics_ != nullptr) statistics_->gate_up = statistics_->down = {};
  factor_.reset();
  return absl::OkStatus();
}

absl::Status BlockQuantizer::Quantize(const Part& part) {
  NIBBLE_RETURN_IF_ERROR(MeasureBefore(part));
  if (options_.recipe.IsRtn()) return absl::OkStatus();
  NIBBLE_RETURN_IF_ERROR(Equalize(part));
  return RoundAll(part);
}

// Rounds to nearest. Where that is the recipe, before is after.
absl::Status BlockQuantizer::MeasureBefore(const Part& part) {
  for (size_t i = 0; i < part.matrices.size(); ++i) {
    const Matrix& matrix = *part.matrices[i];
    Step(part, "rtn", 0.2 * static_cast<double>(i) / static_cast<double>(part.matrices.size()));
    const int64_t start_ns = Clock::Monotonic().NowNs();
    auto rounded =
        QuantizeRtnMatrix(matrix.weight.data(), matrix.n, matrix.k, SchemeFor(matrix.k), pool_);
    if (!rounded.ok()) return Annotate(rounded.status(), matrix.name);
    ModuleReport module = {.name = matrix.name, .n = matrix.n, .k = matrix.k};
    module.seconds = SecondsSince(start_ns);
    module.bits_per_weight = BitsPerWeight(*rounded);
    const WeightError error = MeasureWeightError(matrix, *rounded, pool_);
    module.weight_norm = error.norm;
    module.weight_error = module.weight_error_before = error.error;
    if (statistics_ != nullptr) {
      const InputStatistics& statistics =
          StatisticsOf(SiteOfMatrix(part.first_matrix + i), *statistics_);
      auto output = OutputError(matrix.weight.data(), *rounded, statistics, pool_);
      if (!output.ok()) return Annotate(output.status(), matrix.name);
      module.output_error = module.output_error_before = *output;
    }
    rounded_.push_back(std::move(rounded).value());
    report_->modules.push_back(std::move(module));
  }
  if (statistics_ == nullptr) return absl::OkStatus();
  for (const Site site : part.sites) {
    const std::vector<float>& abs_max = StatisticsOf(site, *statistics_).abs_max;
    const float max = *std::max_element(abs_max.begin(), abs_max.end());
    report_->sites.push_back({.name = fmt::format("{}{}", part.prefix, ToString(site)),
                              .abs_max = max,
                              .range = std::string(ToString(ClassifyRange(max))),
                              .equalization = "none",
                              .abs_max_after = max});
  }
  return absl::OkStatus();
}

absl::Status BlockQuantizer::Equalize(const Part& part) {
  if (options_.recipe.equalization == Equalization::kNone) return absl::OkStatus();
  const bool awq = options_.recipe.equalization == Equalization::kAwq;
  Step(part, awq ? "awq" : "fptq", 0.2);
  NIBBLE_RETURN_IF_ERROR(awq ? EqualizeAwq(part) : EqualizeFptq(part));
  for (const Site site : part.sites) {
    const std::vector<float>& abs_max = StatisticsOf(site, *statistics_).abs_max;
    ReportOf(part, site).abs_max_after = *std::max_element(abs_max.begin(), abs_max.end());
  }
  return absl::OkStatus();
}

absl::Status BlockQuantizer::EqualizeAwq(const Part& part) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<SiteChange> changes,
                          SearchScales(Context(part), {}, &block_, statistics_));
  for (const SiteChange& change : changes) {
    std::string& text = ReportOf(part, change.site).equalization;
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

absl::Status BlockQuantizer::EqualizeFptq(const Part& part) {
  NIBBLE_ASSIGN_OR_RETURN(
      const std::vector<FptqSite> sites,
      EqualizeLogarithmic(Context(part), FptqPolicy::kWhereBetter, &block_, statistics_));
  for (const FptqSite& site : sites) {
    if (site.equalized) ReportOf(part, site.site).equalization = "logarithmic";
  }
  return absl::OkStatus();
}

absl::Status BlockQuantizer::RoundAll(const Part& part) {
  for (size_t i = 0; i < part.matrices.size(); ++i) {
    const Matrix& matrix = *part.matrices[i];
    const size_t matrix_idx = part.first_matrix + i;
    const std::string_view name = matrix.name;
    Step(part, name.substr(name.rfind('.') + 1),
         0.4 + 0.6 * static_cast<double>(i) / static_cast<double>(part.matrices.size()));
    const int64_t start_ns = Clock::Monotonic().NowNs();
    NIBBLE_ASSIGN_OR_RETURN(Rounded rounded, Round(matrix, SiteOfMatrix(matrix_idx)));
    ModuleReport& module = report_->modules[matrix_idx];
    module.seconds = SecondsSince(start_ns);
    module.output_error = rounded.output_error;
    module.bits_per_weight = BitsPerWeight(rounded.weight);
    module.weight_error = MeasureWeightError(matrix, rounded.weight, pool_).error;
    rounded_[matrix_idx] = std::move(rounded.weight);
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

absl::StatusOr<QuantizedBlock> QuantizeBlock(BlockToQuantize block, const AttentionShape& shape,
                                             const BlockQuantizerOptions& options,
                                             const StepCallback& on_step, LayerReport* report,
                                             ThreadPool* pool) {
  return BlockQuantizer(std::move(block), shape, options, on_step, report, pool).Run();
}

}  // namespace nibble::quantize
