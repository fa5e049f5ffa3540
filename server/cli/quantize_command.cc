// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// nibble quantize
#include <optional>

#include "base/cpu_features.h"
#include "quantize/quantize.h"
#include "server/cli/commands.h"
#include "server/cli/model_setup.h"
#include "server/cli/progress.h"

namespace nibble::cli {
namespace {

using quantize::Phase;
using quantize::QuantizeProgress;

// A bar for each phase of the work.
class PhasedProgress {
 public:
  void Update(const QuantizeProgress& state) {
    if (!progress_ || phase_ != state.phase) {
      progress_.reset();  // ends its line
      Start(state.phase);
    }
    std::string detail;
    if (state.phase == Phase::kLayers) {
      detail = fmt::format("layer {} of {}: {}", state.layer_idx + 1, state.num_layers, state.step);
    }
    progress_->Update(state.done, state.total, detail);
  }

 private:
  void Start(Phase phase) {
    phase_ = phase;
    constexpr int64_t kMega = 1'000'000;
    switch (phase) {
      case Phase::kLoading:
        progress_.emplace("loading weights", "MB", ProgressOptions{.divisor = kMega});
        return;
      case Phase::kGenerating:
        progress_.emplace("writing calibration text", "tokens",
                          ProgressOptions{.show_remaining = true});
        return;
      case Phase::kLayers:
        progress_.emplace(
            "quantizing", "layers",
            ProgressOptions{.divisor = quantize::kLayerUnits, .show_remaining = true});
        return;
      case Phase::kWriting:
        progress_.emplace("writing", "MB", ProgressOptions{.divisor = kMega});
        return;
      case Phase::kEvaluating:
        progress_.emplace("scoring", "tokens", ProgressOptions{.show_remaining = true});
        return;
    }
  }

  std::optional<Progress> progress_;
  Phase phase_ = Phase::kLoading;
};

// `status` with what `other` says on a line of its own.
absl::Status Join(const absl::Status& status, const absl::Status& other) {
  if (status.ok() || other.ok()) return status.ok() ? other : status;
  return {status.code(),
          fmt::format("{}\n{}", std::string(status.message()), std::string(other.message()))};
}

absl::StatusOr<quantize::QuantizeOptions> ParseOptions(const QuantizeOptions& options) {
  quantize::QuantizeOptions parsed;
  absl::Status status;
  if (const auto scheme = quantize::ParseScheme(options.scheme); scheme.ok()) {
    parsed.scheme = *scheme;
    const auto group_size = quantize::ParseGroupSize(options.group_size, parsed.scheme);
    if (group_size.ok()) parsed.group_size = *group_size;
    status = group_size.status();
  } else {
    status = scheme.status();
  }
  const auto recipe = quantize::ParseRecipe(options.method);
  status = Join(status, recipe.status());
  if (options.norm_tweaking) parsed.norm_tweak_rate = options.norm_tweaking_lr;
  parsed.calibration = {.data = options.calibration_data,
                        .num_samples = options.calibration_samples,
                        .length = options.calibration_length,
                        .seed = options.seed};
  parsed.eval_data = options.eval_data;
  parsed.overwrite = options.overwrite;
  parsed.restart = options.restart;
  if (options.threads < 0 || options.threads > 1024) {
    status = Join(status, InvalidArgument("--threads is {}, want 0 to 1024", options.threads));
  }
  // What the other options mean depends on these.
  if (status.ok()) {
    parsed.recipe = *recipe;
    status = quantize::Validate(parsed);
  }
  NIBBLE_RETURN_IF_ERROR(status);
  NIBBLE_ASSIGN_OR_RETURN(parsed.isa, ChooseIsa());
  return parsed;
}

absl::Status Quantize(const QuantizeOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const quantize::QuantizeOptions parsed, ParseOptions(options));
  ThreadPool pool(options.threads > 0 ? options.threads : ThreadPool::HostThreads());
  quantize::QuantizeReport report;
  {
    PhasedProgress progress;
    const auto on_progress = [&](const QuantizeProgress& state) { progress.Update(state); };
    NIBBLE_ASSIGN_OR_RETURN(report, quantize::QuantizeCheckpoint(options.source, options.output,
                                                                 parsed, &pool, on_progress));
  }
  fmt::print("{}", quantize::Table(report));
  if (report.resumed_layers > 0) {
    PrintMessage(fmt::format("{} of {} layers were finished by an earlier run\n",
                             report.resumed_layers, report.layers.size()));
  }
  PrintMessage(
      fmt::format("wrote {}: {} {} (calibration: {}), {} of tensors, the source has {}, "
                  "{:.1f} s; the table is in {}\n",
                  options.output, report.scheme, report.method, report.calibration,
                  HumanBytes(report.output_bytes), HumanBytes(report.source_bytes), report.seconds,
                  quantize::kReportFile));
  return absl::OkStatus();
}

}  // namespace

int RunQuantize(const QuantizeOptions& options) {
  const absl::Status status = Quantize(options);
  return status.ok() ? 0 : Fail(status);
}

}  // namespace nibble::cli
