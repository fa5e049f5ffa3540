// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/report.h"

#include <cmath>
#include <limits>
#include <string_view>
#include <utility>

#include "fmt/format.h"
#include "nlohmann/json.hpp"

namespace nibble::quantize {
namespace {

using Json = nlohmann::ordered_json;

Json Optional(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }

Json ToJson(const ModuleReport& module) {
  return {{"name", module.name},
          {"n", module.n},
          {"k", module.k},
          {"bits_per_weight", module.bits_per_weight},
          {"weight_norm", module.weight_norm},
          {"weight_error_before", module.weight_error_before},
          {"weight_error", module.weight_error},
          {"output_error_before", Optional(module.output_error_before)},
          {"output_error", Optional(module.output_error)},
          {"seconds", module.seconds}};
}

Json ToJson(const SiteReport& site) {
  return {{"name", site.name},
          {"abs_max", site.abs_max},
          {"range", site.range},
          {"equalization", site.equalization},
          {"abs_max_after", site.abs_max_after}};
}

template <typename T>
void Read(const nlohmann::json& json, const char* name, T* value) {
  *value = json.at(name).get<T>();
}

// JSON has no other word for what is not finite.
void Read(const nlohmann::json& json, const char* name, double* value) {
  *value = json.at(name).is_null() ? std::numeric_limits<double>::quiet_NaN()
                                   : json.at(name).get<double>();
}

void Read(const nlohmann::json& json, const char* name, std::optional<double>* value) {
  if (!json.at(name).is_null()) *value = json.at(name).get<double>();
}

ModuleReport ModuleFromJson(const nlohmann::json& json) {
  ModuleReport module;
  Read(json, "name", &module.name);
  Read(json, "n", &module.n);
  Read(json, "k", &module.k);
  Read(json, "bits_per_weight", &module.bits_per_weight);
  Read(json, "weight_norm", &module.weight_norm);
  Read(json, "weight_error_before", &module.weight_error_before);
  Read(json, "weight_error", &module.weight_error);
  Read(json, "output_error_before", &module.output_error_before);
  Read(json, "output_error", &module.output_error);
  Read(json, "seconds", &module.seconds);
  return module;
}

Json ToJson(const ExpertReport& expert) {
  return {{"tokens", expert.num_tokens}, {"calibrated_on_all", expert.all_tokens}};
}

ExpertReport ExpertFromJson(const nlohmann::json& json) {
  ExpertReport expert;
  Read(json, "tokens", &expert.num_tokens);
  Read(json, "calibrated_on_all", &expert.all_tokens);
  return expert;
}

SiteReport SiteFromJson(const nlohmann::json& json) {
  SiteReport site;
  Read(json, "name", &site.name);
  Read(json, "abs_max", &site.abs_max);
  Read(json, "range", &site.range);
  Read(json, "equalization", &site.equalization);
  Read(json, "abs_max_after", &site.abs_max_after);
  return site;
}

LayerReport LayerFromJson(const nlohmann::json& json) {
  LayerReport layer;
  Read(json, "layer", &layer.layer_idx);
  Read(json, "seconds", &layer.seconds);
  for (const nlohmann::json& module : json.at("modules")) {
    layer.modules.push_back(ModuleFromJson(module));
  }
  for (const nlohmann::json& site : json.at("sites")) layer.sites.push_back(SiteFromJson(site));
  for (const nlohmann::json& expert : json.at("experts")) {
    layer.experts.push_back(ExpertFromJson(expert));
  }
  if (const nlohmann::json& tweak = json.at("norm_tweaking"); !tweak.is_null()) {
    layer.norm_tweak.emplace();
    Read(tweak, "loss_before", &layer.norm_tweak->loss_before);
    Read(tweak, "loss_after", &layer.norm_tweak->loss_after);
    Read(tweak, "kept", &layer.norm_tweak->kept);
  }
  return layer;
}

Json ToJson(const ErrorSummary& summary) {
  return {{"bits_per_weight", summary.bits_per_weight},
          {"weight_error_before", summary.weight_error_before},
          {"weight_error", summary.weight_error},
          {"output_error_before", Optional(summary.output_error_before)},
          {"output_error", Optional(summary.output_error)}};
}

}  // namespace

ErrorSummary Summarize(const std::vector<LayerReport>& layers) {
  ErrorSummary summary;
  double norm = 0.0;
  double bits = 0.0;
  double num_weights = 0.0;
  double output_before = 0.0;
  double output = 0.0;
  int64_t num_outputs = 0;
  const auto square = [](double x) { return x * x; };
  for (const LayerReport& layer : layers) {
    for (const ModuleReport& module : layer.modules) {
      const double count = static_cast<double>(module.n) * static_cast<double>(module.k);
      num_weights += count;
      bits += count * module.bits_per_weight;
      norm += square(module.weight_norm);
      summary.weight_error_before += square(module.weight_norm * module.weight_error_before);
      summary.weight_error += square(module.weight_norm * module.weight_error);
      if (!module.output_error_before || !module.output_error) continue;
      ++num_outputs;
      output_before += square(*module.output_error_before);
      output += square(*module.output_error);
    }
  }
  const auto root = [](double sum, double of) { return of > 0.0 ? std::sqrt(sum / of) : 0.0; };
  summary.weight_error_before = root(summary.weight_error_before, norm);
  summary.weight_error = root(summary.weight_error, norm);
  if (num_outputs > 0) {
    summary.output_error_before = root(output_before, static_cast<double>(num_outputs));
    summary.output_error = root(output, static_cast<double>(num_outputs));
  }
  summary.bits_per_weight = num_weights > 0.0 ? bits / num_weights : 0.0;
  return summary;
}

Json ToJson(const LayerReport& report) {
  Json json = {{"layer", report.layer_idx}, {"seconds", report.seconds},
               {"modules", Json::array()},  {"sites", Json::array()},
               {"experts", Json::array()},  {"norm_tweaking", nullptr}};
  for (const ModuleReport& module : report.modules) json["modules"].push_back(ToJson(module));
  for (const SiteReport& site : report.sites) json["sites"].push_back(ToJson(site));
  for (const ExpertReport& expert : report.experts) json["experts"].push_back(ToJson(expert));
  if (report.norm_tweak) {
    json["norm_tweaking"] = {{"loss_before", report.norm_tweak->loss_before},
                             {"loss_after", report.norm_tweak->loss_after},
                             {"kept", report.norm_tweak->kept}};
  }
  return json;
}

Json ToJson(const QuantizeReport& report) {
  Json json = {{"scheme", report.scheme},
               {"method", report.method},
               {"group_size", report.group_size},
               {"norm_tweaking", report.norm_tweaking},
               {"calibration", report.calibration},
               {"resumed_layers", report.resumed_layers},
               {"seconds", report.seconds},
               {"source_bytes", report.source_bytes},
               {"output_bytes", report.output_bytes},
               {"all", ToJson(Summarize(report.layers))},
               {"evaluation", nullptr},
               {"layers", Json::array()}};
  if (const auto& evaluation = report.evaluation) {
    json["evaluation"] = {{"data", evaluation->data},
                          {"context", evaluation->context},
                          {"stride", evaluation->stride},
                          {"scored", evaluation->num_scored},
                          {"source_perplexity", evaluation->source_perplexity},
                          {"perplexity", evaluation->perplexity},
                          {"quantization", evaluation->quantization}};
  }
  for (const LayerReport& layer : report.layers) json["layers"].push_back(ToJson(layer));
  return json;
}

absl::StatusOr<LayerReport> LayerReportFromJson(const nlohmann::json& json) {
  try {
    return LayerFromJson(json);
  } catch (const nlohmann::json::exception& error) {
    return InvalidArgument("no report of a layer: {}", error.what());
  }
}

}  // namespace nibble::quantize
