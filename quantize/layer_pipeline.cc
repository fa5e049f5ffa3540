// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/layer_pipeline.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "engine/model/memory.h"
#include "quantize/block_source.h"
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

// What calibration of layer `layer_idx` takes, roughly: its floats in four forms (norm tweaking: of
// source and rounded, with copies packed for products both ways), of the widest site the Hessian,
// its factor and a copy, and what lies between the sites for the rows of a run. Of experts, two
// forms of all (codes, and what runs) and four of one, and their inputs.
double WorkingBytes(const engine::ModelConfig& config, int64_t layer_idx, int64_t num_tokens,
                    int64_t length, bool tweaks) {
  const BlockWeights block = EmptyBlock(config, layer_idx);
  const auto size = [](const Matrix& matrix) {
    return static_cast<double>(matrix.n) * static_cast<double>(matrix.k);
  };
  double weights = 0.0;
  double widest = 0.0;
  for (const Matrix* matrix : Matrices(block)) {
    const auto k = static_cast<double>(matrix->k);
    weights += size(*matrix);
    widest = std::max(widest, k * k);
  }
  // The network that is calibrated at a time, the widest.
  const FeedForward* network = &block;
  if (block.moe) {
    for (const FeedForward& expert : block.moe->experts) {
      if (expert.gate.n > network->gate.n) network = &expert;
    }
  }
  double hessians = 0.0;
  for (const Matrix* matrix : {&block.q, &block.o, &network->gate, &network->down}) {
    hessians += static_cast<double>(matrix->k) * static_cast<double>(matrix->k);
  }
  const auto hidden = static_cast<double>(config.hidden_size);
  const auto q = static_cast<double>(block.q.n);
  const auto kv = static_cast<double>(block.k.n);
  const auto ffn = static_cast<double>(network->gate.n);
  const double rows = static_cast<double>(BlockRunner::SequencesPerRun(length) * length);
  double run = rows * (3.0 * hidden + 2.0 * q + 4.0 * kv + 4.0 * ffn);
  double forms = (tweaks ? 24.0 : 16.0) * weights;
  if (block.moe) {
    const auto experts_per_tok = static_cast<double>(block.moe->num_experts_per_tok);
    run += rows * (1.0 + experts_per_tok) * hidden + static_cast<double>(num_tokens) * hidden;
    if (!tweaks) forms = 5.0 * weights + 16.0 * 3.0 * size(network->gate);
  }
  // Two traces of a sequence, and gradients of as many values.
  const double traces =
      static_cast<double>(length) * 4.0 *
      (5.0 * hidden + 3.0 * q + 3.0 * kv +
       3.0 * ffn * (block.moe ? static_cast<double>(block.moe->num_experts_per_tok + 1) : 1.0));
  return forms + 8.0 * hessians + 16.0 * widest + 4.0 * std::max(run, tweaks ? traces : 0.0);
}

}  // namespace

absl::Status LayerPipeline::Calibrate(const CalibrationTokens& tokens) {
  HiddenStates states = {
      .num_seqs = tokens.num_samples, .length = tokens.length, .hidden = config_.hidden_size};
  const auto num_tokens = static_cast<int64_t>(tokens.ids.size());
  const int64_t state_bytes = num_tokens * states.hidden * static_cast<int64_t>(sizeof(float));
  double working_bytes = 0.0;
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    working_bytes = std::max(working_bytes, WorkingBytes(config_, layer, num_tokens, tokens.length,
                                                         options_.norm_tweak_rate.has_value()));
  }
  NIBBLE_RETURN_IF_ERROR(engine::CheckMemory(
      state_bytes + static_cast<int64_t>(working_bytes),
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

absl::StatusOr<LayerPipeline::Watched> LayerPipeline::Watch(const BlockWeights& block,
                                                            const StepCallback& on_step) {
  const Isa isa = options_.block.isa;
  NIBBLE_ASSIGN_OR_RETURN(
      BlockRunner runner,
      block.moe ? BlockRunner::CreateWithoutExperts(config_, rope_, block, 16, isa, pool_)
                : BlockRunner::Create(config_, rope_, block, 16, isa, pool_));
  const int64_t num_tokens = states_->num_seqs * states_->length;
  StatisticsCollector collector({.num_tokens = num_tokens}, isa, pool_);
  Watched watched;
  if (block.moe) {
    watched.experts.emplace(
        *block.moe,
        ExpertInputsOptions{
            .num_tokens = num_tokens, .min_tokens = options_.min_expert_tokens, .isa = isa},
        pool_);
  }
  const auto observe = [&](Site site, const float* rows, int64_t num_rows, int64_t k) {
    if (!watched.experts || site != Site::kGateUp) {
      return collector.Observe(site, rows, num_rows, k);
    }
    watched.experts->Add(rows, num_rows);
    return absl::OkStatus();
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
  watched.statistics = collector.Finish();
  if (block.moe) NIBBLE_RETURN_IF_ERROR(watched.experts->Route(*block.moe));
  return watched;
}

// `inputs` is null without calibration.
absl::StatusOr<Expert> LayerPipeline::ReadExpert(const BlockWeights& names, size_t expert_idx,
                                                 ExpertInputs* inputs) {
  Expert expert;
  NIBBLE_ASSIGN_OR_RETURN(expert.weights, LoadExpert(source_, names, expert_idx, pool_));
  if (inputs == nullptr) return expert;
  auto statistics = inputs->StatisticsOf(expert_idx, expert.weights);
  if (!statistics.ok()) return Annotate(statistics.status(), expert.weights.gate.name);
  expert.statistics = std::move(statistics).value();
  return expert;
}

absl::StatusOr<NormTweakReport> LayerPipeline::Tweak(QuantizedBlock* block) {
  const int64_t layer_idx = block->weights.layer_idx;
  NIBBLE_ASSIGN_OR_RETURN(const BlockWeights source, LoadBlock(source_, config_, layer_idx, pool_));
  const BlockWeights rounded = Dequantized(*block);
  const Isa isa = options_.block.isa;
  NIBBLE_ASSIGN_OR_RETURN(const FloatBlock reference,
                          FloatBlock::Create(source, SettingsOf(config_, rope_, layer_idx, 16, isa),
                                             Gradient::kNone, pool_));
  NIBBLE_ASSIGN_OR_RETURN(FloatBlock quantized,
                          FloatBlock::Create(rounded,
                                             SettingsOf(config_, rope_, layer_idx,
                                                        ActivationBits(options_.block.scheme), isa),
                                             Gradient::kNorms, pool_));
  const BlockInputs inputs = {.x = states_->rows.data(),
                              .sequence_lengths = std::vector<int64_t>(
                                  static_cast<size_t>(states_->num_seqs), states_->length)};
  NIBBLE_ASSIGN_OR_RETURN(
      const NormTweakResult result,
      TweakNorms(reference, inputs, layer_idx,
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
  NIBBLE_ASSIGN_OR_RETURN(BlockWeights weights,
                          LoadWithoutExperts(source_, config_, layer_idx, pool_));
  const BlockWeights names = EmptyBlock(config_, layer_idx);
  std::optional<Watched> watched;
  if (states_) {
    auto result = Watch(weights, on_step);
    if (!result.ok()) return Annotate(result.status(), fmt::format("layer {}", layer_idx));
    watched.emplace(std::move(result).value());
  }
  const double rounding_begin = states_ ? kWatched : 0.0;
  const double rounding_end = states_ ? kRounded : 1.0;
  const auto on_rounding = [&](std::string_view step, double share) {
    on_step(step, rounding_begin + (rounding_end - rounding_begin) * share);
  };
  const auto read_expert = [&](size_t expert_idx) {
    return ReadExpert(names, expert_idx, watched ? &*watched->experts : nullptr);
  };
  NIBBLE_ASSIGN_OR_RETURN(
      QuantizedBlock block,
      QuantizeBlock({.weights = std::move(weights),
                     .statistics = watched ? &watched->statistics : nullptr,
                     .read_expert = read_expert},
                    AttentionShapeOf(config_), options_.block, on_rounding, report, pool_));
  watched.reset();
  if (options_.norm_tweak_rate) {
    on_step("norm tweaking", kRounded);
    NIBBLE_ASSIGN_OR_RETURN(report->norm_tweak, Tweak(&block));
  }
  if (states_) on_step("quantized run", kTweaked);
  report->seconds = static_cast<double>(Clock::Monotonic().NowNs() - start_ns) * 1e-9;
  return block;
}

absl::Status LayerPipeline::Advance(const QuantizedBlock& block) {
  if (!states_) return absl::OkStatus();
  NIBBLE_ASSIGN_OR_RETURN(
      BlockRunner runner,
      BlockRunner::Create(config_, rope_, block, ActivationBits(options_.block.scheme),
                          options_.block.isa, pool_));
  return runner.RunAll(&*states_, nullptr);
}

}  // namespace nibble::quantize
