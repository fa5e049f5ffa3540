// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <iterator>
#include <string_view>
#include <utility>

#include "fmt/format.h"
#include "fmt/ranges.h"

#include "quantize/report.h"

namespace nibble::quantize {
namespace {

std::string Cell(const std::optional<double>& value) {
  return value ? fmt::format("{:.5f}", *value) : "-";
}

// "model.layers.0.mlp.experts.3.gate_proj" as a line of the table has it.
struct ModuleName {
  std::string network;  // "experts.3.", "shared_expert." or "": as sites have it
                        // in front
  std::string label;    // "gate_proj"
  int64_t expert = -1;  // 3, or -1: none
};

// Mixtral's names for what other models call gate, up and down.
std::string_view LabelOf(std::string_view last) {
  constexpr std::pair<std::string_view, std::string_view> kLabels[] = {
      {"w1", "gate_proj"}, {"w3", "up_proj"}, {"w2", "down_proj"}};
  for (const auto& [name, label] : kLabels) {
    if (last == name) return label;
  }
  return last;
}

// "gate_proj" of experts, which have a sign in front.
std::string Short(const std::string& label) { return label.substr(0, label.find("_proj")); }

ModuleName NameOf(const ModuleReport& module) {
  constexpr std::string_view kExperts = ".experts.";
  constexpr std::string_view kShared = ".shared_expert.";
  ModuleName name;
  const size_t dot = module.name.rfind('.');
  name.label = LabelOf(std::string_view(module.name).substr(dot + 1));
  if (const size_t at = module.name.find(kExperts); at < dot) {
    const std::string number = module.name.substr(at + kExperts.size(), dot - at - kExperts.size());
    name.network = fmt::format("experts.{}.", number);
    name.expert = std::atoll(number.c_str());
  } else if (module.name.find(kShared) < dot) {
    name.network = kShared.substr(1);
  }
  return name;
}

const SiteReport* SiteOf(const LayerReport& layer, const ModuleName& module) {
  const std::string_view label = module.label;
  const std::string_view site = label == "o_proj"                            ? "o"
                                : label == "down_proj"                       ? "down"
                                : label == "gate_proj" || label == "up_proj" ? "gate_up"
                                                                             : "qkv";
  for (const SiteReport& report : layer.sites) {
    if (report.name == fmt::format("{}{}", module.network, site)) return &report;
  }
  return nullptr;
}

constexpr const char* kRow = "{:>5}  {:<9}  {:>5.2f}  {:>8} {:>8}  {:>8} {:>8}  {:>9} {:<7} {}\n";

void AppendRow(int64_t layer_idx, const std::string& name, const ErrorSummary& errors,
               const SiteReport* site, const std::string& note, std::string* out) {
  fmt::format_to(std::back_inserter(*out), kRow, layer_idx, name, errors.bits_per_weight,
                 Cell(errors.weight_error_before), Cell(errors.weight_error),
                 Cell(errors.output_error_before), Cell(errors.output_error),
                 site != nullptr ? fmt::format("{:.2f}", site->abs_max) : "-",
                 site != nullptr ? site->range : "", note);
}

double ErrorOf(const ModuleReport& module) {
  return module.output_error.value_or(module.weight_error);
}

// One matrix of all experts.
void AppendExperts(const LayerReport& layer, const std::string& label, std::string* out) {
  LayerReport experts;
  const SiteReport* widest = nullptr;
  const ModuleReport* worst = nullptr;
  size_t num_equalized = 0;
  for (const ModuleReport& module : layer.modules) {
    const ModuleName name = NameOf(module);
    if (name.expert < 0 || name.label != label) continue;
    experts.modules.push_back(module);
    if (worst == nullptr || ErrorOf(module) > ErrorOf(*worst)) worst = &module;
    const SiteReport* const site = SiteOf(layer, name);
    if (site == nullptr) continue;
    if (widest == nullptr || site->abs_max > widest->abs_max) widest = site;
    if (site->equalization != "none") ++num_equalized;
  }
  std::string note =
      fmt::format("worst {}: expert {}", Cell(ErrorOf(*worst)), NameOf(*worst).expert);
  if (num_equalized > 0) {
    note = fmt::format("{} of {}; {}", num_equalized, experts.modules.size(), note);
  }
  AppendRow(layer.layer_idx, "*" + Short(label), Summarize({experts}), widest, note, out);
}

void AppendTokens(const LayerReport& layer, int64_t num_routed, std::string* out) {
  const auto end = layer.experts.begin() +
                   std::min<int64_t>(num_routed, static_cast<int64_t>(layer.experts.size()));
  const auto [least, most] = std::minmax_element(
      layer.experts.begin(), end,
      [](const ExpertReport& a, const ExpertReport& b) { return a.num_tokens < b.num_tokens; });
  if (least == end) return;
  std::vector<int64_t> few;
  for (auto expert = layer.experts.begin(); expert != end; ++expert) {
    if (expert->all_tokens) few.push_back(expert - layer.experts.begin());
  }
  fmt::format_to(std::back_inserter(*out), "{:>5}  * {} experts of {}..{} calibration tokens",
                 layer.layer_idx, num_routed, least->num_tokens, most->num_tokens);
  if (!few.empty()) {
    fmt::format_to(std::back_inserter(*out), "; on all tokens, for want of their own: {}",
                   fmt::join(few, " "));
  }
  *out += '\n';
}

void AppendLayer(const LayerReport& layer, std::string* out) {
  std::vector<std::string> expert_labels;
  int64_t num_routed = 0;
  for (const ModuleReport& module : layer.modules) {
    const ModuleName name = NameOf(module);
    if (name.expert >= 0) {
      num_routed = std::max(num_routed, name.expert + 1);
      if (std::find(expert_labels.begin(), expert_labels.end(), name.label) !=
          expert_labels.end()) {
        continue;
      }
      expert_labels.push_back(name.label);
      AppendExperts(layer, name.label, out);
      continue;
    }
    const SiteReport* const site = SiteOf(layer, name);
    const ErrorSummary errors = {.weight_error_before = module.weight_error_before,
                                 .weight_error = module.weight_error,
                                 .output_error_before = module.output_error_before,
                                 .output_error = module.output_error,
                                 .bits_per_weight = module.bits_per_weight};
    AppendRow(layer.layer_idx, name.network.empty() ? name.label : "+" + Short(name.label), errors,
              site, site != nullptr ? site->equalization : "", out);
  }
  if (num_routed > 0) AppendTokens(layer, num_routed, out);
  if (!layer.norm_tweak) return;
  fmt::format_to(std::back_inserter(*out), "{:>5}  norms: moment loss {:.5f} -> {:.5f}, {}\n",
                 layer.layer_idx, layer.norm_tweak->loss_before, layer.norm_tweak->loss_after,
                 layer.norm_tweak->kept ? "tweaked" : "left as they were");
}

}  // namespace

std::string Table(const QuantizeReport& report) {
  std::string out;
  fmt::format_to(std::back_inserter(out), "{:>5}  {:<9}  {:>5}  {:>17}  {:>17}  {}\n", "", "", "",
                 "weight error", "output error", "input");
  fmt::format_to(std::back_inserter(out),
                 "{:>5}  {:<9}  {:>5}  {:>8} {:>8}  {:>8} {:>8}  {:>9} {:<7} {}\n", "layer",
                 "module", "bits", "rtn", "now", "rtn", "now", "max", "range", "equalized");
  for (const LayerReport& layer : report.layers) AppendLayer(layer, &out);
  const ErrorSummary all = Summarize(report.layers);
  fmt::format_to(std::back_inserter(out), kRow, "all", "", all.bits_per_weight,
                 Cell(all.weight_error_before), Cell(all.weight_error),
                 Cell(all.output_error_before), Cell(all.output_error), "", "", "");
  if (const auto& evaluation = report.evaluation) {
    fmt::format_to(std::back_inserter(out),
                   "perplexity of {}: {:.4f}, of the source {:.4f} ({:+.2f} %; {} tokens scored, "
                   "context {}, stride {}, {})\n",
                   evaluation->data, evaluation->perplexity, evaluation->source_perplexity,
                   100.0 * (evaluation->perplexity / evaluation->source_perplexity - 1.0),
                   evaluation->num_scored, evaluation->context, evaluation->stride,
                   evaluation->quantization);
  }
  return out;
}

}  // namespace nibble::quantize
