// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What quantization did to a model: quantize_report.json of the output folder, and the table on
// the terminal.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "nlohmann/json_fwd.hpp"

#include "base/status.h"

namespace nibble::quantize {

// Before: rounding to nearest of the source's weights. After: the recipe. Errors are relative;
// those of the weights Frobenius norms, those of the output over the calibration tokens (there are
// none without calibration).
struct ModuleReport {
  std::string name;  // "model.layers.0.mlp.up_proj"
  int64_t n = 0;
  int64_t k = 0;
  double bits_per_weight = 0.0;      // codes and scales as stored
  double weight_norm = 0.0;          // ||W||
  double weight_error_before = 0.0;  // ||W - Q|| / ||W||
  // The same of the weights that were rounded: equalization has changed them, and their norm.
  double weight_error = 0.0;
  std::optional<double> output_error_before;  // ||X (W - Q)^T|| / ||X W^T||
  std::optional<double> output_error;
  double seconds = 0.0;  // of clipping and rounding
};

// The input of one or more linear layers.
struct SiteReport {
  // "qkv", "o", "gate_up", "down"; "experts.3.gate_up", "shared_expert.down"
  std::string name;
  double abs_max = 0.0;        // largest activation before equalization
  std::string range;           // FPTQ's class of it: "narrow", "middle", "wide"
  std::string equalization;    // "none", "mean^0.35", "logarithmic"
  double abs_max_after = 0.0;  // after equalization
};

// An expert of a layer, the shared one last.
struct ExpertReport {
  int64_t num_tokens = 0;   // of the calibration tokens, that the router sends to it
  bool all_tokens = false;  // so few that it was calibrated on all of them
};

struct NormTweakReport {
  double loss_before = 0.0;
  double loss_after = 0.0;
  bool kept = false;
};

struct LayerReport {
  int64_t layer_idx = 0;
  double seconds = 0.0;
  std::vector<ModuleReport> modules;
  std::vector<SiteReport> sites;      // none without calibration
  std::vector<ExpertReport> experts;  // none without calibration, or of a dense layer
  std::optional<NormTweakReport> norm_tweak;
};

// Of some modules together.
struct ErrorSummary {
  double weight_error_before = 0.0;  // of all weights
  double weight_error = 0.0;
  std::optional<double> output_error_before;  // root mean square over the modules
  std::optional<double> output_error;
  double bits_per_weight = 0.0;
};
ErrorSummary Summarize(const std::vector<LayerReport>& layers);

struct EvaluationReport {
  std::string data;
  int64_t context = 0;
  int64_t stride = 0;
  int64_t num_scored = 0;
  double source_perplexity = 0.0;
  double perplexity = 0.0;
  std::string quantization;  // how the output ran: Model::quantization_name()
};

struct QuantizeReport {
  std::string scheme;
  std::string method;  // steps in full
  std::string group_size;
  bool norm_tweaking = false;
  std::string calibration;     // "none", "self-generated, 128 x 512 tokens, seed 0"
  int64_t resumed_layers = 0;  // that an earlier run had finished
  double seconds = 0.0;
  int64_t source_bytes = 0;  // tensors of the source
  int64_t output_bytes = 0;  // tensors of the output
  std::vector<LayerReport> layers;
  std::optional<EvaluationReport> evaluation;
};

nlohmann::ordered_json ToJson(const LayerReport& report);
nlohmann::ordered_json ToJson(const QuantizeReport& report);
// INVALID_ARGUMENT for what ToJson does not write.
absl::StatusOr<LayerReport> LayerReportFromJson(const nlohmann::json& json);

// Lines of a table, ended by newlines. The experts of a layer share a line for each of gate, up and
// down ("*gate"): the root mean square of their errors, and the worst of them. "+gate" is the
// shared expert's.
std::string Table(const QuantizeReport& report);

}  // namespace nibble::quantize
