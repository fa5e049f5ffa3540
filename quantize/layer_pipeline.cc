// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/layer_pipeline.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "engine/model/memory.h"
#include "quantize/methods/float_block.h"
#include "quantize/methods/norm_tweak.h"
#include "quantize/statistics.h"

namespace nibble::quantize {
namespace {

// Shares of a layer's time, for progress: until they are over.
constexpr double kWatched = 0.3;
constexpr double kRounded = 0.85;
constexpr double kTweaked = 0.95;

BlockSettings SettingsOf(const engine::ModelConfig& config, const kernels::RopeTable& rope,
                         int64_t layer_idx, int activation_bits, Isa isa) {
  return {.attention = AttentionShapeOf(config),
          .rms_norm_eps = config.rms_norm_eps,
          .sliding_window = config.sliding_window[static_cast<size_t>(layer_idx)],
          .activation_bits = activation_bits,
          .rope = &rope,
          .isa = isa};
}

// What calibration of the largest layer takes, roughly: its floats in four forms (norm tweaking: of
// source and rounded, with copies packed for products both ways), of the widest site the Hessian,
// its factor and a copy, and what lies between the sites for the rows of a run.
int64_t WorkingBytes(const engine::ModelConfig& config, int64_t length, bool tweaks) {
  const BlockWeights block = EmptyBlock(config, 0);
  double weights = 0.0;
  double widest = 0.0;
  double hessians = 0.0;
  for (const Matrix* matrix : Matrices(block)) {
    const auto k = static_cast<double>(matrix->k);
    weights += static_cast<double>(matrix->n) * k;
    widest = std::max(widest, k * k);
  }
  for (const Matrix* matrix : {&block.q, &block.o, &block.gate, &block.down}) {
    hessians += static_cast<double>(matrix->k) * static_cast<double>(matrix->k);
  }
  const auto hidden = static_cast<double>(config.hidden_size);
  const auto q = static_cast<double>(block.q.n);
  const auto kv = static_cast<double>(block.k.n);
  const auto ffn = static_cast<double>(config.intermediate_size);
  const double rows = static_cast<double>(BlockRunner::SequencesPerRun(length) * length);
  const double run = rows * (3.0 * hidden + 2.0 * q + 4.0 * kv + 4.0 * ffn);
  // Two traces of a sequence, and gradients of as many values.
  const double traces =
      static_cast<double>(length) * 4.0 * (5.0 * hidden + 3.0 * q + 3.0 * kv + 3.0 * ffn);
  return static_cast<int64_t>((tweaks ? 24.0 : 16.0) * weights + 8.0 * hessians + 16.0 * widest +
                              4.0 * std::max(run, tweaks ? traces : 0.0));
}

}  // namespace

absl::Status LayerPipeline::Calibrate(const CalibrationTokens& tokens) {
  HiddenStates states = {
      .num_seqs = tokens.num_samples, .length = tokens.length, .hidden = config_.hidden_size};
  const auto num_tokens = static_cast<int64_t>(tokens.ids.size());
  const int64_t state_bytes = num_tokens * states.hidden * static_cast<int64_t>(sizeof(float));
  NIBBLE_RETURN_IF_ERROR(engine::CheckMemory(
      state_bytes + WorkingBytes(config_, tokens.length, options_.norm_tweak_rate.has_value()),
      fmt::format("calibration on {} x {} tokens", tokens.num_samples, tokens.length)));
  NIBBLE_ASSIGN_OR_RETURN(
      const engine::TensorView* embedding,
      source_.Get("model.embed_tokens.weight", {config_.vocab_size, config_.hidden_size}));
  NIBBLE_RETURN_IF_ERROR(engine::ReadFloats(*embedding, 0, 0, nullptr));  // its type
  states.rows = AlignedBuffer<float>(static_cast<size_t>(num_tokens * states.hidden));
  for (int64_t i = 0; i < num_tokens; ++i) {
    NIBBLE_RETURN_IF_ERROR(
        engine::ReadFloats(*embedding, tokens.ids[static_cast<size_t>(i)] * states.hidden,
                           states.hidden, states.rows.data() + i * states.hidden));
  }
  rope_ = kernels::MakeRopeTable(config_.rope, tokens.length, pool_);
  states_ = std::move(states);
  return absl::OkStatus();
}

absl::StatusOr<BlockStatistics> LayerPipeline::Watch(const BlockWeights& block,
                                                     const StepCallback& on_step) {
  NIBBLE_ASSIGN_OR_RETURN(BlockRunner runner, BlockRunner::Create(config_, rope_, block, 16,
                                                                  options_.block.isa, pool_));
  StatisticsCollector collector({.num_tokens = states_->num_seqs * states_->length},
                                options_.block.isa, pool_);
  const auto observe = [&](Site site, const float* rows, int64_t num_rows, int64_t k) {
    return collector.Observe(site, rows, num_rows, k);
  };
  const int64_t step = BlockRunner::SequencesPerRun(states_->length);
  AlignedBuffer<float> x(static_cast<size_t>(step * states_->length * states_->hidden));
  for (int64_t seq = 0; seq < states_->num_seqs; seq += step) {
    const int64_t num_seqs = std::min(step, states_->num_seqs - seq);
    const float* const rows = states_->Sequence(seq);
    std::copy(rows, rows + num_seqs * states_->length * states_->hidden, x.data());
    NIBBLE_RETURN_IF_ERROR(runner.Run(x.data(), num_seqs, states_->length, observe));
    on_step("calibration", kWatched * static_cast<double>(seq + num_seqs) /
                               static_cast<double>(states_->num_seqs));
  }
  return collector.Finish();
}

absl::StatusOr<NormTweakReport> LayerPipeline::Tweak(const BlockWeights& source,
                                                     QuantizedBlock* block) {
  const BlockWeights rounded = Dequantized(*block);
  const Isa isa = options_.block.isa;
  NIBBLE_ASSIGN_OR_RETURN(
      const FloatBlock reference,
      FloatBlock::Create(source, SettingsOf(config_, rope_, source.layer_idx, 16, isa),
                         Gradient::kNone, pool_));
  NIBBLE_ASSIGN_OR_RETURN(FloatBlock quantized,
                          FloatBlock::Create(rounded,
                                             SettingsOf(config_, rope_, source.layer_idx,
                                                        ActivationBits(options_.block.scheme), isa),
                                             Gradient::kNorms, pool_));
  const BlockInputs inputs = {.x = states_->rows.data(),
                              .sequence_lengths = std::vector<int64_t>(
                                  static_cast<size_t>(states_->num_seqs), states_->length)};
  NIBBLE_ASSIGN_OR_RETURN(
      const NormTweakResult result,
      TweakNorms(reference, inputs, source.layer_idx,
                 {.learning_rate = *options_.norm_tweak_rate, .num_layers = config_.num_layers},
                 &quantized, pool_));
  block->weights.input_norm = quantized.norms.input;
  block->weights.post_attention_norm = quantized.norms.post_attention;
  block->weights.q_norm = quantized.norms.q;
  block->weights.k_norm = quantized.norms.k;
  return NormTweakReport{
      .loss_before = result.loss_before, .loss_after = result.loss_after, .kept = result.kept};
}

absl::StatusOr<QuantizedBlock> LayerPipeline::Quantize(int64_t layer_idx,
                                                       const StepCallback& on_step,
                                                       LayerReport* report) {
  const int64_t start_ns = Clock::Monotonic().NowNs();
  on_step("loading", 0.0);
  NIBBLE_ASSIGN_OR_RETURN(BlockWeights weights, LoadBlock(source_, config_, layer_idx, pool_));
  std::optional<BlockStatistics> statistics;
  if (states_) {
    auto watched = Watch(weights, on_step);
    if (!watched.ok()) return Annotate(watched.status(), fmt::format("layer {}", layer_idx));
    statistics = std::move(watched).value();
  }
  BlockWeights source;
  if (options_.norm_tweak_rate) source = weights;
  const double rounding_begin = states_ ? kWatched : 0.0;
  const double rounding_end = states_ ? kRounded : 1.0;
  const auto on_rounding = [&](std::string_view step, double share) {
    on_step(step, rounding_begin + (rounding_end - rounding_begin) * share);
  };
  NIBBLE_ASSIGN_OR_RETURN(
      QuantizedBlock block,
      QuantizeBlock(std::move(weights), statistics ? &*statistics : nullptr,
                    AttentionShapeOf(config_), options_.block, on_rounding, report, pool_));
  statistics.reset();
  if (options_.norm_tweak_rate) {
    on_step("norm tweaking", kRounded);
    NIBBLE_ASSIGN_OR_RETURN(report->norm_tweak, Tweak(source, &block));
  }
  if (states_) on_step("quantized run", kTweaked);
  report->seconds = static_cast<double>(Clock::Monotonic().NowNs() - start_ns) * 1e-9;
  return block;
}

absl::Status LayerPipeline::Advance(const QuantizedBlock& block) {
  if (!states_) return absl::OkStatus();
  NIBBLE_ASSIGN_OR_RETURN(
      BlockRunner runner,
      BlockRunner::Create(config_, rope_, Dequantized(block), ActivationBits(options_.block.scheme),
                          options_.block.isa, pool_));
  return runner.RunAll(&*states_, nullptr);
}

}  // namespace nibble::quantize
