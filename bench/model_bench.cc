// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/model_bench.h"

#include <algorithm>
#include <chrono>

#include "nlohmann/json.hpp"

#include "base/check.h"
#include "bench/limits.h"
#include "bench/model_batch.h"
#include "bench/report.h"
#include "bench/step_ops.h"
#include "bench/timing.h"

namespace nibble::bench {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

nlohmann::ordered_json Members(const engine::Model& model) {
  nlohmann::ordered_json members = {{"model",
                                     {{"quantization", model.quantization_name()},
                                      {"kv_cache_dtype", ToString(model.kv_dtype())},
                                      {"weight_bytes", model.weight_bytes()},
                                      {"step_weight_bytes", model.step_weight_bytes()}}}};
  if (!model.device_name().empty()) members["device"] = {{"name", model.device_name()}};
  return members;
}

// Weights of the linear layers that every token passes, the head aside; of experts, as many as a
// token goes to.
double LinearWeights(const engine::ModelConfig& config) {
  const int64_t q = config.num_heads * config.head_dim;
  const int64_t kv = config.num_kv_heads * config.head_dim;
  int64_t weights = config.num_layers * config.hidden_size * (2 * q + 2 * kv);
  for (int64_t l = 0; l < config.num_layers; ++l) {
    weights += config.HasExperts(l) ? config.moe->CountParameters(config.hidden_size,
                                                                  config.moe->num_experts_per_tok)
                                    : 3 * config.hidden_size * config.intermediate_size;
  }
  return static_cast<double>(weights);
}

// Each token attends to itself and those before it, a product with its key and one with its value.
double PromptAttentionOps(const engine::ModelConfig& config, int64_t prompt) {
  const auto pairs = static_cast<double>(prompt * (prompt + 1) / 2);
  const auto columns = static_cast<double>(config.num_layers * config.num_heads * config.head_dim);
  return 2.0 * 2.0 * pairs * columns;
}

// What the figures are compared with, and how the report calls it.
struct Limits {
  DevicePeaks peaks;
  nlohmann::ordered_json json;
};

// This host's say nothing of a model that a device computes.
absl::StatusOr<Limits> MeasureLimits(const ModelSubject& subject) {
  if (subject.probe == nullptr) {
    NIBBLE_CHECK(subject.model->device_name().empty());
    const Roofline roofline = MeasureRoofline(subject.isa, subject.pool);
    return Limits{{roofline.read_bytes_per_s, roofline.int8_op_per_s}, ToJson(roofline)};
  }
  NIBBLE_ASSIGN_OR_RETURN(const DevicePeaks peaks, subject.probe->MeasurePeaks());
  return Limits{peaks, ToJson(peaks)};
}

// Where a step of `plan` goes, which took `step_s`: on a device; else nothing.
absl::Status AddOps(const ModelSubject& subject, const Limits& limits, const ModelBatch& batch,
                    const engine::StepPlan& plan, const AttentionWork& attention, double step_s,
                    nlohmann::ordered_json* row) {
  if (subject.probe == nullptr) return absl::OkStatus();
  NIBBLE_ASSIGN_OR_RETURN(
      const DeviceStep step,
      subject.probe->TimeStep(subject.model, plan, batch.cache(), subject.pool));
  AddStepOps(step, attention, step_s, limits.peaks, row);
  return absl::OkStatus();
}

// Seconds of every step of one repetition.
absl::Status RunSteps(ModelBatch* batch, int64_t context, int64_t steps, ThreadPool* pool,
                      std::vector<double>* seconds) {
  for (int64_t i = 0; i < steps; ++i) {
    const Clock::time_point start = Clock::now();
    NIBBLE_RETURN_IF_ERROR(batch->Step(context + i, 1, true, pool));
    seconds->push_back(SecondsSince(start));
  }
  return absl::OkStatus();
}

absl::StatusOr<nlohmann::ordered_json> MeasureDecode(const DecodeBenchOptions& options,
                                                     int64_t num_seqs, int64_t context,
                                                     const Limits& limits,
                                                     const ModelSubject& subject) {
  NIBBLE_ASSIGN_OR_RETURN(
      ModelBatch batch,
      ModelBatch::Create(subject.model,
                         {.num_seqs = num_seqs, .max_tokens = context + options.steps},
                         subject.pool));
  batch.FillCache(subject.isa, subject.pool);
  NIBBLE_RETURN_IF_ERROR(batch.Step(context, 1, true, subject.pool));  // warms up
  std::vector<double> step_seconds;
  std::vector<double> repetition_seconds;
  for (int64_t i = 0; i < options.repetitions; ++i) {
    const Clock::time_point start = Clock::now();
    NIBBLE_RETURN_IF_ERROR(RunSteps(&batch, context, options.steps, subject.pool, &step_seconds));
    repetition_seconds.push_back(SecondsSince(start));
  }
  const Timing repetition = Summarize(std::move(repetition_seconds));
  const Timing step = Summarize(std::move(step_seconds));
  const double tokens = static_cast<double>(num_seqs * options.steps);
  nlohmann::ordered_json row = {{"batch", num_seqs},
                                {"context", context},
                                {"steps", options.steps},
                                {"tokens_per_s", Rounded(tokens / repetition.median_s)},
                                {"best_tokens_per_s", Rounded(tokens / repetition.best_s)},
                                {"step_median_ms", Rounded(step.median_s * 1e3)},
                                {"step_best_ms", Rounded(step.best_s * 1e3)}};
  const double mean_context =
      static_cast<double>(context) + 0.5 * static_cast<double>(options.steps + 1);
  const double cache_bytes = static_cast<double>(num_seqs * batch.bytes_per_token()) * mean_context;
  NIBBLE_RETURN_IF_ERROR(AddOps(subject, limits, batch,
                                batch.MakePlan(context + options.steps / 2, 1, true),
                                {.cache_bytes = cache_bytes}, step.median_s, &row));
  // A step reads the experts that its tokens go to; `nibble bench moe` counts them.
  if (subject.model->config().moe.has_value()) return row;
  const double bytes = static_cast<double>(subject.model->step_weight_bytes()) + cache_bytes;
  const double bytes_per_s = bytes * static_cast<double>(options.steps) / repetition.median_s;
  row["bytes_per_step"] = static_cast<int64_t>(bytes);
  row["bytes_per_token"] = static_cast<int64_t>(bytes / static_cast<double>(num_seqs));
  row["gb_per_s"] = Rounded(bytes_per_s * 1e-9);
  row["share_of_read"] = Rounded(bytes_per_s / limits.peaks.read_bytes_per_s);
  return row;
}

absl::StatusOr<nlohmann::ordered_json> MeasurePrefill(const PrefillBenchOptions& options,
                                                      int64_t prompt, const Limits& limits,
                                                      const ModelSubject& subject) {
  const int64_t max_chunk = std::min(prompt, options.max_num_batched_tokens);
  NIBBLE_ASSIGN_OR_RETURN(
      ModelBatch batch,
      ModelBatch::Create(subject.model, {.max_tokens = prompt, .max_chunk = max_chunk},
                         subject.pool));
  batch.FillCache(subject.isa, subject.pool);
  // A device loads kernels and plans at a first pass, which does not count.
  const int64_t warm_ups = subject.probe != nullptr ? 1 : 0;
  std::vector<double> seconds;
  for (int64_t i = 0; i < warm_ups + options.repetitions; ++i) {
    const Clock::time_point start = Clock::now();
    for (int64_t done = 0; done < prompt; done += max_chunk) {
      const int64_t chunk = std::min(max_chunk, prompt - done);
      NIBBLE_RETURN_IF_ERROR(batch.Step(done, chunk, done + chunk == prompt, subject.pool));
    }
    if (i >= warm_ups) seconds.push_back(SecondsSince(start));
  }
  const Timing timing = Summarize(std::move(seconds));
  const auto tokens = static_cast<double>(prompt);
  const double ops_per_s = 2.0 * LinearWeights(subject.model->config()) * tokens / timing.median_s;
  nlohmann::ordered_json row = {
      {"prompt", prompt},
      {"chunk", max_chunk},
      {"tokens_per_s", Rounded(tokens / timing.median_s)},
      {"best_tokens_per_s", Rounded(tokens / timing.best_s)},
      {"median_ms", Rounded(timing.median_s * 1e3)},
      {"best_ms", Rounded(timing.best_s * 1e3)},
      {"top_per_s", Rounded(ops_per_s * 1e-12)},
      {"share_of_int8_peak", Rounded(ops_per_s / limits.peaks.int8_op_per_s)}};
  if (max_chunk < prompt) return row;  // several steps, which differ
  NIBBLE_RETURN_IF_ERROR(AddOps(subject, limits, batch, batch.MakePlan(0, prompt, true),
                                {.ops = PromptAttentionOps(subject.model->config(), prompt)},
                                timing.median_s, &row));
  return row;
}

// Rows of a report; what fails is one with `error`, so that the others are not lost.
class Cases {
 public:
  explicit Cases(Report* report) : report_(report) {}

  // `row`, or `given` with the reason.
  void Add(nlohmann::ordered_json given, absl::StatusOr<nlohmann::ordered_json> row) {
    if (row.ok()) {
      ++num_good_;
      return report_->Add(*std::move(row));
    }
    if (error_.ok()) error_ = row.status();
    given["error"] = row.status().ToString();
    report_->Add(std::move(given));
  }
  // The first one, where no case was measured.
  absl::Status error() const { return num_good_ > 0 ? absl::OkStatus() : error_; }

 private:
  Report* const report_;
  int num_good_ = 0;
  absl::Status error_;
};

}  // namespace

void DecodeBenchOptions::Validate(std::vector<std::string>* violations) const {
  CheckLimits("--batch", batches, 1, 4096, violations);
  CheckLimits("--context", contexts, 0, 1 << 24, violations);
  CheckLimits("--steps", {steps}, 1, 1 << 20, violations);
  CheckLimits("--repetitions", {repetitions}, 1, 10000, violations);
}

void PrefillBenchOptions::Validate(std::vector<std::string>* violations) const {
  CheckLimits("--prompt", prompts, 1, 1 << 24, violations);
  CheckLimits("--max-num-batched-tokens", {max_num_batched_tokens}, 1, 1 << 20, violations);
  CheckLimits("--repetitions", {repetitions}, 1, 10000, violations);
}

absl::StatusOr<nlohmann::ordered_json> RunDecodeBench(const DecodeBenchOptions& options,
                                                      const ModelSubject& subject) {
  NIBBLE_ASSIGN_OR_RETURN(const Limits limits, MeasureLimits(subject));
  Report report("decode",
                {{"batch", "batch", 6},
                 {"context", "context", 9},
                 {"tokens_per_s", "tokens/s", 11, 2},
                 {"step_median_ms", "step ms", 10, 2},
                 {"bytes_per_token", "bytes/token", 13},
                 {"gb_per_s", "GB/s", 8, 2},
                 {"share_of_read", "of read", 9, 3},
                 {"share_of_roofline", "of roofline", 12, 3},
                 {"device_ms", "device ms", 10, 2},
                 {"host_ms", "host ms", 8, 2}},
                subject.table);
  const nlohmann::ordered_json members = Members(*subject.model);
  NIBBLE_RETURN_IF_ERROR(
      report.SaveTo(options.save, subject.pool->num_threads(), limits.json, members));
  Cases cases(&report);
  for (const int64_t context : options.contexts) {
    for (const int64_t num_seqs : options.batches) {
      cases.Add({{"batch", num_seqs}, {"context", context}},
                MeasureDecode(options, num_seqs, context, limits, subject));
    }
  }
  NIBBLE_RETURN_IF_ERROR(cases.error());
  return report.Finish(subject.pool->num_threads(), limits.json, members);
}

absl::StatusOr<nlohmann::ordered_json> RunPrefillBench(const PrefillBenchOptions& options,
                                                       const ModelSubject& subject) {
  NIBBLE_ASSIGN_OR_RETURN(const Limits limits, MeasureLimits(subject));
  Report report("prefill",
                {{"prompt", "prompt", 7},
                 {"chunk", "chunk", 7},
                 {"tokens_per_s", "tokens/s", 11, 2},
                 {"median_ms", "ms", 10, 1},
                 {"top_per_s", "TOP/s", 8, 3},
                 {"share_of_int8_peak", "of peak", 9, 3},
                 {"share_of_roofline", "of roofline", 12, 3},
                 {"device_ms", "device ms", 10, 2}},
                subject.table);
  const nlohmann::ordered_json members = Members(*subject.model);
  NIBBLE_RETURN_IF_ERROR(
      report.SaveTo(options.save, subject.pool->num_threads(), limits.json, members));
  Cases cases(&report);
  for (const int64_t prompt : options.prompts) {
    cases.Add({{"prompt", prompt}}, MeasurePrefill(options, prompt, limits, subject));
  }
  NIBBLE_RETURN_IF_ERROR(cases.error());
  return report.Finish(subject.pool->num_threads(), limits.json, members);
}

}  // namespace nibble::bench
