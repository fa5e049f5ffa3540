// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/quantize.h"

#include <cstring>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "fmt/ranges.h"
#include "nlohmann/json.hpp"

#include "base/clock.h"
#include "base/mapped_file.h"
#include "engine/model/memory.h"
#include "engine/model/model.h"
#include "engine/model/model_config.h"
#include "engine/model/safetensors.h"
#include "engine/tokenizer/tokenizer.h"
#include "quantize/checkpoint_output.h"
#include "quantize/evaluation.h"
#include "quantize/files.h"
#include "quantize/layer_pipeline.h"
#include "quantize/layer_store.h"
#include "quantize/run_description.h"
#include "quantize/source_check.h"
#include "quantize/work_folder.h"

namespace nibble::quantize {
namespace {

using engine::Checkpoint;
using engine::ModelConfig;

// A path in the report may be anything.
constexpr auto kReplaceInvalid = nlohmann::ordered_json::error_handler_t::replace;

// One run: the source, the work folder, and the report so far.
class Run {
 public:
  Run(const std::string& source, QuantizeOptions options, ThreadPool* pool,
      const ProgressCallback& progress)
      : source_dir_(source), options_(std::move(options)), pool_(pool), progress_(progress) {}

  absl::StatusOr<QuantizeReport> Do(const std::string& output);

 private:
  absl::Status Open();
  absl::Status ReadTexts();
  absl::StatusOr<CalibrationTokens> Generate(const WorkFolder& work);
  absl::Status QuantizeLayers(const WorkFolder& work);
  absl::Status QuantizeLayer(int64_t layer_idx, const WorkFolder& work, LayerPipeline* pipeline);
  absl::Status ResumeLayer(int64_t layer_idx, const WorkFolder& work, LayerPipeline* pipeline);
  absl::Status WriteOutput(const std::string& dir, const WorkFolder& work);
  void Report(Phase phase, int64_t done, int64_t total) const {
    if (progress_) progress_({.phase = phase, .done = done, .total = total});
  }
  void ReportStep(int64_t layer_idx, std::string_view step, double share) const {
    if (!progress_) return;
    progress_({.phase = Phase::kLayers,
               .done = layer_idx * kLayerUnits + static_cast<int64_t>(share * kLayerUnits),
               .total = config_.num_layers * kLayerUnits,
               .layer_idx = layer_idx,
               .num_layers = config_.num_layers,
               .step = step});
  }
  bool calibrates() const { return !options_.calibration.data.empty(); }

  const std::string source_dir_;
  const QuantizeOptions options_;
  ThreadPool* pool_;
  const ProgressCallback& progress_;
  ModelConfig config_;
  std::optional<Checkpoint> source_;
  std::unique_ptr<engine::Tokenizer> tokenizer_;
  CalibrationTokens tokens_;
  std::vector<int32_t> eval_ids_;
  QuantizeReport report_;
};

absl::Status Run::Open() {
  NIBBLE_ASSIGN_OR_RETURN(config_, engine::LoadModelConfig(source_dir_));
  if (config_.quantization) {
    return InvalidArgument(
        "{}: quantized already (quantization_config in config.json); start from the full-precision "
        "model",
        source_dir_);
  }
  NIBBLE_ASSIGN_OR_RETURN(source_, Checkpoint::Open(source_dir_));
  return CheckSource(*source_, config_, options_);
}

// Texts are read before work begins, so that a bad one costs nothing.
absl::Status Run::ReadTexts() {
  if (!calibrates() && options_.eval_data.empty()) return absl::OkStatus();
  NIBBLE_ASSIGN_OR_RETURN(tokenizer_, engine::Tokenizer::Load(source_dir_));
  if (calibrates() && options_.calibration.data != kSelfGenerated) {
    NIBBLE_ASSIGN_OR_RETURN(tokens_, TokensOfText(options_.calibration, *tokenizer_, config_));
  }
  if (!options_.eval_data.empty()) {
    NIBBLE_RETURN_IF_ERROR(engine::CheckMemory(
        source_->total_bytes(), "the source model, for its perplexity of the evaluation text,"));
    NIBBLE_ASSIGN_OR_RETURN(eval_ids_, EvaluationTokens(options_.eval_data, *tokenizer_, config_));
  }
  return absl::OkStatus();
}

// The tokens that an earlier run left, or new ones.
absl::StatusOr<CalibrationTokens> Run::Generate(const WorkFolder& work) {
  CalibrationTokens tokens = {.num_samples = options_.calibration.num_samples,
                              .length = CalibrationLength(options_.calibration, config_)};
  const auto num_bytes = static_cast<size_t>(tokens.num_samples * tokens.length) * sizeof(int32_t);
  std::error_code error;
  if (std::filesystem::exists(work.calibration_path(), error)) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(work.calibration_path(), num_bytes));
    tokens.ids.resize(bytes.size() / sizeof(int32_t));
    std::memcpy(tokens.ids.data(), bytes.data(), tokens.ids.size() * sizeof(int32_t));
    bool valid = bytes.size() == num_bytes;
    for (const int32_t id : tokens.ids) valid = valid && id >= 0 && id < config_.vocab_size;
    if (valid) return tokens;
    return DataLoss("{}: not the tokens that were written here; --restart discards them",
                    work.calibration_path());
  }
  engine::LoadOptions load = {.isa = options_.isa};
  load.progress = [&](int64_t done, int64_t total) { Report(Phase::kLoading, done, total); };
  auto model = engine::Model::Load(source_dir_, load, pool_);
  if (!model.ok()) {
    return Annotate(model.status(), "for self-generated calibration (a text file needs no model)");
  }
  NIBBLE_ASSIGN_OR_RETURN(
      tokens,
      GenerateTokens(
          options_.calibration, *tokenizer_, model->get(),
          [&](int64_t done, int64_t total) { Report(Phase::kGenerating, done, total); }, pool_));
  NIBBLE_RETURN_IF_ERROR(WriteFile(work.calibration_path(),
                                   {reinterpret_cast<const char*>(tokens.ids.data()), num_bytes}));
  return tokens;
}

absl::Status Run::QuantizeLayers(const WorkFolder& work) {
  const LayerPipelineOptions options = {.block = {.scheme = options_.scheme,
                                                  .group_size = options_.group_size,
                                                  .recipe = options_.recipe,
                                                  .isa = options_.isa},
                                        .norm_tweak_rate = options_.norm_tweak_rate};
  LayerPipeline pipeline(*source_, config_, options, pool_);
  if (calibrates()) {
    if (options_.calibration.data == kSelfGenerated) {
      NIBBLE_ASSIGN_OR_RETURN(tokens_, Generate(work));
    }
    NIBBLE_RETURN_IF_ERROR(pipeline.Calibrate(tokens_));
  }
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    NIBBLE_RETURN_IF_ERROR(work.HasLayer(layer) ? ResumeLayer(layer, work, &pipeline)
                                                : QuantizeLayer(layer, work, &pipeline));
  }
  return absl::OkStatus();
}

absl::Status Run::QuantizeLayer(int64_t layer_idx, const WorkFolder& work,
                                LayerPipeline* pipeline) {
  const auto on_step = [&](std::string_view step, double share) {
    ReportStep(layer_idx, step, share);
  };
  LayerReport report;
  NIBBLE_ASSIGN_OR_RETURN(const QuantizedBlock block,
                          pipeline->Quantize(layer_idx, on_step, &report));
  NIBBLE_ASSIGN_OR_RETURN(const std::string dir, work.BeginLayer());
  NIBBLE_RETURN_IF_ERROR(WriteLayer(dir, block, report, *source_));
  NIBBLE_RETURN_IF_ERROR(work.FinishLayer(layer_idx));
  report_.layers.push_back(std::move(report));
  const bool last = layer_idx + 1 == config_.num_layers;
  if (!last) NIBBLE_RETURN_IF_ERROR(pipeline->Advance(block));
  on_step("done", 1.0);
  return absl::OkStatus();
}

absl::Status Run::ResumeLayer(int64_t layer_idx, const WorkFolder& work, LayerPipeline* pipeline) {
  ReportStep(layer_idx, "finished earlier", 0.0);
  const std::string dir = work.LayerPath(layer_idx);
  NIBBLE_ASSIGN_OR_RETURN(LayerReport report, ReadLayerReport(dir));
  report_.layers.push_back(std::move(report));
  ++report_.resumed_layers;
  const bool last = layer_idx + 1 == config_.num_layers;
  if (!last && calibrates()) {
    NIBBLE_ASSIGN_OR_RETURN(
        const QuantizedBlock block,
        ReadLayer(dir, config_, layer_idx, options_.scheme, options_.group_size, pool_));
    ReportStep(layer_idx, "quantized run", 0.2);
    NIBBLE_RETURN_IF_ERROR(pipeline->Advance(block));
  }
  ReportStep(layer_idx, "finished earlier", 1.0);
  return absl::OkStatus();
}

absl::Status Run::WriteOutput(const std::string& dir, const WorkFolder& work) {
  const auto on_write = [&](int64_t done, int64_t total) { Report(Phase::kWriting, done, total); };
  NIBBLE_ASSIGN_OR_RETURN(report_.output_bytes,
                          WriteCheckpoint(dir, *source_, config_, work,
                                          {.scheme = options_.scheme,
                                           .group_size = options_.group_size,
                                           .max_shard_bytes = options_.max_shard_bytes},
                                          on_write));
  if (!options_.eval_data.empty()) {
    const auto on_eval = [&](int64_t done, int64_t total) {
      Report(Phase::kEvaluating, done, total);
    };
    auto evaluation = Evaluate({.source = source_dir_,
                                .output = dir,
                                .scheme = options_.scheme,
                                .data = options_.eval_data,
                                .ids = eval_ids_,
                                .isa = options_.isa},
                               on_eval, pool_);
    if (!evaluation.ok()) {
      return Annotate(evaluation.status(),
                      "comparing perplexities (the layers are finished: the same command without "
                      "evaluation writes the output)");
    }
    report_.evaluation = std::move(evaluation).value();
  }
  return absl::OkStatus();
}

absl::StatusOr<QuantizeReport> Run::Do(const std::string& output) {
  const int64_t start_ns = Clock::Monotonic().NowNs();
  NIBBLE_RETURN_IF_ERROR(Open());
  NIBBLE_RETURN_IF_ERROR(CheckFolders(source_dir_, output));
  NIBBLE_RETURN_IF_ERROR(ReadTexts());
  NIBBLE_ASSIGN_OR_RETURN(const nlohmann::ordered_json description,
                          DescribeRun(*source_, options_));
  NIBBLE_ASSIGN_OR_RETURN(WorkFolder work, WorkFolder::Open(output, description,
                                                            {.overwrite = options_.overwrite,
                                                             .restart = options_.restart}));
  report_.scheme = ToString(options_.scheme);
  report_.method = ToString(options_.recipe);
  report_.group_size = GroupSizeName(options_.group_size);
  report_.norm_tweaking = options_.norm_tweak_rate.has_value();
  report_.calibration =
      DescribeCalibration(options_, CalibrationLength(options_.calibration, config_));
  report_.source_bytes = source_->total_bytes();
  NIBBLE_RETURN_IF_ERROR(QuantizeLayers(work));
  NIBBLE_ASSIGN_OR_RETURN(const std::string dir, work.BeginOutput());
  NIBBLE_RETURN_IF_ERROR(WriteOutput(dir, work));
  report_.seconds = static_cast<double>(Clock::Monotonic().NowNs() - start_ns) * 1e-9;
  NIBBLE_RETURN_IF_ERROR(WriteFile(fmt::format("{}/{}", dir, kReportFile),
                                   ToJson(report_).dump(2, ' ', false, kReplaceInvalid) + "\n"));
  NIBBLE_RETURN_IF_ERROR(work.Commit());
  return std::move(report_);
}

}  // namespace

absl::Status Validate(const QuantizeOptions& options) {
  std::vector<std::string> violations;
  const auto violate = [&]<typename... Args>(fmt::format_string<Args...> format, Args&&... args) {
    violations.push_back(fmt::format(format, std::forward<Args>(args)...));
  };
  if (options.scheme == Scheme::kW8A8 && options.group_size != kChannelGroup) {
    violate("group size is {}: scheme w8a8 has one scale per output channel ({})",
            options.group_size, kChannelGroup);
  } else if (options.group_size != kChannelGroup &&
             (options.group_size < 8 || options.group_size > kMaxGroupSize ||
              options.group_size % 8 != 0)) {
    violate(
        "group size is {}, must be a multiple of 8 in 8..{}, or {} for one scale per output "
        "channel",
        options.group_size, kMaxGroupSize, kChannelGroup);
  }
  if (options.norm_tweak_rate &&
      !(*options.norm_tweak_rate > 0.0 && *options.norm_tweak_rate <= 1.0)) {
    violate("the learning rate of norm tweaking is {}, must be above 0, at most 1",
            *options.norm_tweak_rate);
  }
  if (options.max_shard_bytes < 1) {
    violate("the size of shards is {} bytes, must be at least 1", options.max_shard_bytes);
  }
  const CalibrationOptions& calibration = options.calibration;
  if (const absl::Status status = Validate(calibration); !status.ok()) {
    violate("{}", std::string(status.message()));
  }
  const CalibrationOptions unset;
  const bool calibrates = options.needs_calibration() || !calibration.data.empty();
  if (!calibrates &&
      (calibration.num_samples != unset.num_samples || calibration.length != unset.length)) {
    violate(
        "calibration samples and length are given, but rtn needs no calibration and there is no "
        "calibration data");
  }
  const bool generates =
      calibrates && (calibration.data.empty() || calibration.data == kSelfGenerated);
  if (!generates && calibration.seed != unset.seed) {
    violate("seed is {}, but nothing is generated: it is of self-generated calibration text",
            calibration.seed);
  }
  if (violations.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("{}", fmt::join(violations, "\n")));
}

absl::StatusOr<QuantizeReport> QuantizeCheckpoint(const std::string& source,
                                                  const std::string& output,
                                                  const QuantizeOptions& options, ThreadPool* pool,
                                                  const ProgressCallback& progress) {
  NIBBLE_RETURN_IF_ERROR(Validate(options));
  QuantizeOptions effective = options;
  if (effective.calibration.data.empty() && options.needs_calibration()) {
    effective.calibration.data = kSelfGenerated;
  }
  try {
    return Run(source, std::move(effective), pool, progress).Do(output);
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("memory ran out while quantizing {}", source);
  }
}

}  // namespace nibble::quantize
