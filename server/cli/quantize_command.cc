// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// nibble quantize
#include <cstdio>
#include <fstream>

#include "nlohmann/json.hpp"

#include "quantize/quantize.h"
#include "server/cli/commands.h"
#include "server/cli/model_setup.h"
#include "server/cli/progress.h"

namespace nibble::cli {
namespace {

nlohmann::ordered_json ToJson(const quantize::QuantizeReport& report) {
  nlohmann::ordered_json layers = nlohmann::ordered_json::array();
  for (const quantize::LayerReport& layer : report.layers) {
    nlohmann::ordered_json modules = nlohmann::ordered_json::array();
    for (const quantize::ModuleReport& module : layer.modules) {
      modules.push_back({{"name", module.name},
                         {"n", module.n},
                         {"k", module.k},
                         {"relative_error", module.relative_error},
                         {"bits_per_weight", module.bits_per_weight}});
    }
    layers.push_back({{"layer", layer.layer_idx},
                      {"relative_error", layer.relative_error},
                      {"bits_per_weight", layer.bits_per_weight},
                      {"modules", std::move(modules)}});
  }
  return {{"relative_error", report.relative_error},
          {"bits_per_weight", report.bits_per_weight},
          {"source_bytes", report.source_bytes},
          {"output_bytes", report.output_bytes},
          {"layers", std::move(layers)}};
}

absl::Status WriteReport(const std::string& path, const quantize::QuantizeReport& report) {
  std::ofstream file(path);
  file << DumpJson(ToJson(report)) << '\n';
  file.close();
  return file ? absl::OkStatus() : InvalidArgument("--report {}: cannot write this file", path);
}

void PrintTable(const quantize::QuantizeReport& report) {
  fmt::print("{:>5}  {:>14}  {:>15}\n", "layer", "relative error", "bits per weight");
  for (const quantize::LayerReport& layer : report.layers) {
    fmt::print("{:>5}  {:>14.5f}  {:>15.3f}\n", layer.layer_idx, layer.relative_error,
               layer.bits_per_weight);
  }
  fmt::print("{:>5}  {:>14.5f}  {:>15.3f}\n", "all", report.relative_error, report.bits_per_weight);
}

absl::Status Quantize(const QuantizeOptions& options) {
  quantize::QuantizeOptions quantize_options;
  NIBBLE_ASSIGN_OR_RETURN(quantize_options.scheme, quantize::ParseScheme(options.scheme));
  NIBBLE_ASSIGN_OR_RETURN(quantize_options.method, quantize::ParseMethod(options.method));
  quantize_options.group_size = options.group_size;
  quantize_options.overwrite = options.overwrite;
  if (options.threads < 0 || options.threads > 1024) {
    return InvalidArgument("--threads is {}, want 0 to 1024", options.threads);
  }
  ThreadPool pool(options.threads > 0 ? options.threads : ThreadPool::HostThreads());
  quantize::QuantizeReport report;
  {
    Progress progress("quantizing", "MB", {.divisor = 1'000'000});
    const auto on_progress = [&](const quantize::QuantizeProgress& state) {
      progress.Update(state.done_bytes, state.total_bytes);
    };
    NIBBLE_ASSIGN_OR_RETURN(
        report, quantize::QuantizeCheckpoint(options.source, options.output, quantize_options,
                                             &pool, on_progress));
  }
  PrintTable(report);
  PrintMessage(fmt::format("wrote {}: {} of tensors, the source has {}\n", options.output,
                           HumanBytes(report.output_bytes), HumanBytes(report.source_bytes)));
  return options.report.empty() ? absl::OkStatus() : WriteReport(options.report, report);
}

}  // namespace

int RunQuantize(const QuantizeOptions& options) {
  const absl::Status status = Quantize(options);
  return status.ok() ? 0 : Fail(status);
}

}  // namespace nibble::cli
