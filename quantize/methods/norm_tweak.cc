// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/methods/norm_tweak.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace nibble::quantize {
namespace {

// Every eighth sequence judges, where there are as many.
constexpr size_t kJudgePeriod = 8;

// Adam (arXiv:1412.6980, algorithm 1) with its default decays.
class Adam {
 public:
  explicit Adam(double learning_rate) : learning_rate_(learning_rate) {}

  // Begins the next step; Update then takes every parameter once, in one order in all steps.
  void BeginStep() {
    ++step_;
    next_ = 0;
  }
  void Update(const std::vector<float>& gradient, std::vector<float>* parameters) {
    constexpr double kBeta1 = 0.9;
    constexpr double kBeta2 = 0.999;
    constexpr double kEpsilon = 1e-8;
    const double correction1 = 1.0 - std::pow(kBeta1, step_);
    const double correction2 = 1.0 - std::pow(kBeta2, step_);
    moments_.resize(std::max(moments_.size(), next_ + gradient.size()));
    for (size_t i = 0; i < gradient.size(); ++i) {
      auto& [first, second] = moments_[next_ + i];
      const auto g = static_cast<double>(gradient[i]);
      first = kBeta1 * first + (1.0 - kBeta1) * g;
      second = kBeta2 * second + (1.0 - kBeta2) * g * g;
      const double change =
          learning_rate_ * (first / correction1) / (std::sqrt(second / correction2) + kEpsilon);
      (*parameters)[i] = static_cast<float>(static_cast<double>((*parameters)[i]) - change);
    }
    next_ += gradient.size();
  }

 private:
  double learning_rate_;
  int step_ = 0;
  size_t next_ = 0;
  std::vector<std::pair<double, double>> moments_;
};

// Sum and sum of squares of every channel over the rows, in double: a difference of moments is
// small beside them.
struct Moments {
  std::vector<double> mean;
  std::vector<double> variance;
};

Moments MomentsOf(const std::vector<float>& rows, int64_t width) {
  const auto channels = static_cast<size_t>(width);
  const auto num_rows = static_cast<double>(rows.size()) / static_cast<double>(width);
  Moments moments = {std::vector<double>(channels), std::vector<double>(channels)};
  for (size_t i = 0; i < rows.size(); ++i) moments.mean[i % channels] += rows[i];
  for (double& mean : moments.mean) mean /= num_rows;
  for (size_t i = 0; i < rows.size(); ++i) {
    const double centered = rows[i] - moments.mean[i % channels];
    moments.variance[i % channels] += centered * centered;
  }
  for (double& variance : moments.variance) variance /= num_rows;
  return moments;
}

double Sign(double x) { return x > 0.0 ? 1.0 : x < 0.0 ? -1.0 : 0.0; }

absl::Status CheckArguments(const FloatBlock& reference, const FloatBlock& quantized,
                            const BlockInputs& inputs, int64_t layer_idx,
                            const NormTweakOptions& options) {
  if (reference.hidden() != quantized.hidden()) {
    return InvalidArgument("the blocks have {} and {} channels", reference.hidden(),
                           quantized.hidden());
  }
  if (!(options.learning_rate >= 0.0 && options.learning_rate <= 1.0)) {
    return InvalidArgument("learning_rate is {}, the range is 0..1", options.learning_rate);
  }
  if (!(options.layer_growth >= 0.0 && options.layer_growth <= 100.0)) {
    return InvalidArgument("layer_growth is {}, the range is 0..100", options.layer_growth);
  }
  if (options.num_layers < 1 || layer_idx < 0 || layer_idx >= options.num_layers) {
    return InvalidArgument("layer {} of {}", layer_idx, options.num_layers);
  }
  if (inputs.sequence_lengths.empty()) return InvalidArgument("no sequences to tweak norms on");
  for (const int64_t length : inputs.sequence_lengths) {
    if (length < 1) return InvalidArgument("a sequence of {} tokens", length);
  }
  return absl::OkStatus();
}

// The sequences, and what the float block makes of each: computed when it is needed, so that the
// outputs of all need not be kept.
class Tweaker {
 public:
  Tweaker(const FloatBlock& reference, const BlockInputs& inputs, FloatBlock* quantized,
          ThreadPool* pool)
      : reference_(reference), inputs_(inputs), quantized_(quantized), pool_(pool) {
    int64_t begin = 0;
    for (const int64_t length : inputs.sequence_lengths) {
      begins_.push_back(begin);
      begin += length;
    }
  }

  size_t num_sequences() const { return begins_.size(); }
  bool Judges(size_t sequence) const {
    return num_sequences() < kJudgePeriod || sequence % kJudgePeriod == kJudgePeriod - 1;
  }
  bool Learns(size_t sequence) const {
    return num_sequences() < kJudgePeriod || sequence % kJudgePeriod != kJudgePeriod - 1;
  }

  // Mean loss over the sequences that judge.
  absl::StatusOr<double> Judge() {
    double sum = 0.0;
    int count = 0;
    for (size_t sequence = 0; sequence < num_sequences(); ++sequence) {
      if (!Judges(sequence)) continue;
      NIBBLE_ASSIGN_OR_RETURN(const double loss, Loss(sequence, nullptr));
      sum += loss;
      ++count;
    }
    return sum / count;
  }

  absl::Status Learn(double learning_rate) {
    Adam adam(learning_rate);
    std::vector<float> dy;
    for (size_t sequence = 0; sequence < num_sequences(); ++sequence) {
      if (!Learns(sequence)) continue;
      NIBBLE_RETURN_IF_ERROR(Loss(sequence, &dy).status());
      const BlockNorms gradient = quantized_->Backward(quantized_trace_, dy.data(), pool_);
      adam.BeginStep();
      adam.Update(gradient.input, &quantized_->norms.input);
      adam.Update(gradient.post_attention, &quantized_->norms.post_attention);
      adam.Update(gradient.q, &quantized_->norms.q);
      adam.Update(gradient.k, &quantized_->norms.k);
    }
    return absl::OkStatus();
  }

 private:
  // Leaves the quantized block's trace for a gradient.
  absl::StatusOr<double> Loss(size_t sequence, std::vector<float>* dy) {
    const float* x = inputs_.x + begins_[sequence] * reference_.hidden();
    const int64_t length = inputs_.sequence_lengths[sequence];
    NIBBLE_RETURN_IF_ERROR(reference_.Forward(x, length, &reference_trace_, pool_));
    NIBBLE_RETURN_IF_ERROR(quantized_->Forward(x, length, &quantized_trace_, pool_));
    return MomentLoss(reference_trace_.y, quantized_trace_.y, reference_.hidden(), dy);
  }

  const FloatBlock& reference_;
  const BlockInputs& inputs_;
  FloatBlock* quantized_;
  ThreadPool* pool_;
  std::vector<int64_t> begins_;
  BlockTrace reference_trace_;
  BlockTrace quantized_trace_;
};

}  // namespace

double MomentLoss(const std::vector<float>& reference, const std::vector<float>& quantized,
                  int64_t hidden, std::vector<float>* gradient) {
  const Moments wanted = MomentsOf(reference, hidden);
  const Moments got = MomentsOf(quantized, hidden);
  const auto channels = static_cast<size_t>(hidden);
  double loss = 0.0;
  for (size_t c = 0; c < channels; ++c) {
    loss += std::abs(wanted.mean[c] - got.mean[c]) + std::abs(wanted.variance[c] - got.variance[c]);
  }
  loss /= static_cast<double>(hidden);
  if (gradient == nullptr) return loss;
  // 1 / (channels * tokens) is 1 / size: d mean / dy = 1 / tokens, d variance / dy = 2 (y - mean) /
  // tokens.
  const double share = 1.0 / static_cast<double>(quantized.size());
  gradient->resize(quantized.size());
  for (size_t i = 0; i < quantized.size(); ++i) {
    const size_t c = i % channels;
    (*gradient)[i] = static_cast<float>(
        share * (Sign(got.mean[c] - wanted.mean[c]) +
                 2.0 * Sign(got.variance[c] - wanted.variance[c]) * (quantized[i] - got.mean[c])));
  }
  return loss;
}

absl::StatusOr<NormTweakResult> TweakNorms(const FloatBlock& reference, const BlockInputs& inputs,
                                           int64_t layer_idx, const NormTweakOptions& options,
                                           FloatBlock* quantized, ThreadPool* pool) {
  NIBBLE_RETURN_IF_ERROR(CheckArguments(reference, *quantized, inputs, layer_idx, options));
  Tweaker tweaker(reference, inputs, quantized, pool);
  const BlockNorms original = quantized->norms;
  NormTweakResult result;
  NIBBLE_ASSIGN_OR_RETURN(result.loss_before, tweaker.Judge());
  const double progress = static_cast<double>(layer_idx) / static_cast<double>(options.num_layers);
  if (absl::Status status =
          tweaker.Learn(options.learning_rate * (1.0 + options.layer_growth * progress));
      !status.ok()) {
    quantized->norms = original;
    return status;
  }
  NIBBLE_ASSIGN_OR_RETURN(result.loss_after, tweaker.Judge());
  result.kept = result.loss_after < result.loss_before;
  if (!result.kept) quantized->norms = original;
  return result;
}

}  // namespace nibble::quantize
