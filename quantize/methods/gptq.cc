// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/methods/gptq.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <span>
#include <utility>

#include "quantize/methods/grid.h"
#include "quantize/methods/rounding.h"
#include "quantize/methods/triangular.h"

namespace nibble::quantize {
namespace {

// Columns whose errors are passed on to the rest of the row at once.
constexpr int64_t kBlock = 128;
// Rows that go through the factor and the Hessian together.
constexpr int64_t kTileRows = 32;
// Passes over the columns within a round of refinement.
constexpr int kMaxSweeps = 8;
// Factors of the channel scale that rounding tries, the given one first.
constexpr float kScaleTrials[] = {1.0F, 0.84F, 0.88F, 0.92F, 0.96F, 1.04F};

// What every tile reads.
struct Problem {
  const Matrix& matrix;
  const double* hessian;
  const HessianFactor& factor;
  const Grid& grid;
  const float* units;  // [n, num_groups]; scales are units * channels
  std::span<const float> scale_trials;
  int refinement_rounds;
  SubtractProductFunction subtract_product;
};

// Some rows of the matrix on their way. z is what they become: scale * code.
class Tile {
 public:
  Tile(const Problem& problem, int64_t first_row, int64_t num_rows, int8_t* codes, float* scales,
       float* channels)
      : problem_(problem),
        first_row_(first_row),
        k_(problem.matrix.k),
        num_rows_(num_rows),
        weights_(problem.matrix.weight.data() + first_row * k_),
        codes_(codes + first_row * k_),
        scales_(scales + first_row * problem.grid.num_groups),
        channels_(channels + first_row),
        added_(problem.factor.added()) {}

  // GPTQ at each of the factors of the channel scale; every row keeps the one that costs it least.
  void Round() {
    const std::vector<float> given(channels_, channels_ + num_rows_);
    std::vector<float> best_channels = given;
    std::vector<int8_t> best_codes(static_cast<size_t>(num_rows_ * k_));
    std::vector<double> least(static_cast<size_t>(num_rows_), INFINITY);
    std::vector<double> costs(static_cast<size_t>(num_rows_));
    for (const float trial : problem_.scale_trials) {
      for (int64_t row = 0; row < num_rows_; ++row) {
        SetChannel(row, RoundChannelScale(given[static_cast<size_t>(row)] * trial));
      }
      RoundColumns(costs.data());
      for (int64_t row = 0; row < num_rows_; ++row) {
        const auto r = static_cast<size_t>(row);
        if (costs[r] >= least[r]) continue;
        least[r] = costs[r];
        best_channels[r] = channels_[row];
        std::copy_n(codes_ + row * k_, k_, best_codes.begin() + row * k_);
      }
    }
    std::copy(best_codes.begin(), best_codes.end(), codes_);
    for (int64_t row = 0; row < num_rows_; ++row) {
      SetChannel(row, best_channels[static_cast<size_t>(row)]);
    }
  }

  // Alternates channel scales and codes.
  void Refine() {
    StartGradients();
    for (int round = 0; round < problem_.refinement_rounds; ++round) {
      bool changed = false;
      for (int64_t row = 0; row < num_rows_; ++row) {
        if (round > 0) changed |= RescaleRow(row);
        for (int sweep = 0; sweep < kMaxSweeps && SweepRow(row); ++sweep) changed = true;
      }
      if (!changed && round > 0) break;  // the first round leaves the channel scales alone
    }
  }

  // d^T H d and w^T H w of every row. REQUIRES Refine().
  void Measure(double* errors, double* signals) const {
    for (int64_t row = 0; row < num_rows_; ++row) {
      errors[row] = 0.0;
      signals[row] = 0.0;
      for (int64_t i = 0; i < k_; ++i) {
        const double w = weights_[row * k_ + i];
        const double d = w - Value(row, i);
        // The damping is no part of the error.
        errors[row] -= d * (gradients_[static_cast<size_t>(row * k_ + i)] + added_ * d);
        signals[row] -= w * (outputs_[static_cast<size_t>(row * k_ + i)] + added_ * w);
      }
    }
  }

 private:
  float Scale(int64_t row, int64_t column) const {
    return scales_[row * problem_.grid.num_groups + column / problem_.grid.group_size];
  }

  float Level(double value, double scale) const {
    if (scale == 0.0) return 0.0F;
    return RoundToLevel(static_cast<float>(value / scale), static_cast<float>(problem_.grid.low),
                        static_cast<float>(problem_.grid.high));
  }

  void SetChannel(int64_t row, float channel) {
    channels_[row] = channel;
    const int64_t num_groups = problem_.grid.num_groups;
    for (int64_t g = 0; g < num_groups; ++g) {
      scales_[row * num_groups + g] = problem_.units[(first_row_ + row) * num_groups + g] * channel;
    }
  }

  // GPTQ proper. costs[row] becomes d^T (H + added) d: what each column could not pass on, squared.
  void RoundColumns(double* costs) {
    const std::vector<int32_t>& order = problem_.factor.order();
    std::vector<double> left(static_cast<size_t>(num_rows_ * k_));  // to round, in rounding order
    for (int64_t row = 0; row < num_rows_; ++row) {
      costs[row] = 0.0;
      for (int64_t i = 0; i < k_; ++i) {
        left[static_cast<size_t>(row * k_ + i)] =
            weights_[row * k_ + order[static_cast<size_t>(i)]];
      }
    }
    std::vector<double> errors(static_cast<size_t>(num_rows_ * kBlock));
    for (int64_t first = 0; first < k_; first += kBlock) {
      const int64_t width = std::min(kBlock, k_ - first);
      for (int64_t row = 0; row < num_rows_; ++row) {
        costs[row] += RoundBlock(row, first, width, left.data() + row * k_ + first,
                                 errors.data() + row * kBlock);
      }
      const int64_t next = first + width;
      problem_.subtract_product({.m = num_rows_,
                                 .n = k_ - next,
                                 .depth = width,
                                 .a = errors.data(),
                                 .lda = kBlock,
                                 .b = problem_.factor.data() + first * k_ + next,
                                 .ldb = k_,
                                 .c = left.data() + next,
                                 .ldc = k_});
    }
  }

  double RoundBlock(int64_t row, int64_t first, int64_t width, double* left, double* errors) {
    double cost = 0.0;
    for (int64_t i = 0; i < width; ++i) {
      const int64_t column = problem_.factor.order()[static_cast<size_t>(first + i)];
      const double* u = problem_.factor.data() + (first + i) * k_ + first;
      const double scale = Scale(row, column);
      const float level = Level(left[i], scale);
      codes_[row * k_ + column] = static_cast<int8_t>(level);
      errors[i] = (left[i] - scale * level) / u[i];
      for (int64_t j = i + 1; j < width; ++j) left[j] -= errors[i] * u[j];
      if (!IsDead(column)) cost += errors[i] * errors[i];
    }
    return cost;
  }

  bool IsDead(int64_t column) const { return problem_.hessian[column * (k_ + 1)] == 0.0; }

  // outputs = -W (H + added), gradients = -(W - Z) (H + added).
  void StartGradients() {
    const auto size = static_cast<size_t>(num_rows_ * k_);
    outputs_.assign(size, 0.0);
    gradients_.assign(size, 0.0);
    std::vector<double> operand(size);
    std::copy_n(weights_, size, operand.begin());
    MultiplyHessian(operand, &outputs_);
    for (int64_t row = 0; row < num_rows_; ++row) {
      for (int64_t i = 0; i < k_; ++i) {
        operand[static_cast<size_t>(row * k_ + i)] -= Value(row, i);
      }
    }
    MultiplyHessian(operand, &gradients_);
  }

  void MultiplyHessian(const std::vector<double>& operand, std::vector<double>* product) {
    problem_.subtract_product({.m = num_rows_,
                               .n = k_,
                               .depth = k_,
                               .a = operand.data(),
                               .lda = k_,
                               .b = problem_.hessian,
                               .ldb = k_,
                               .c = product->data(),
                               .ldc = k_});
    for (size_t i = 0; i < operand.size(); ++i) (*product)[i] -= added_ * operand[i];
  }

  double Value(int64_t row, int64_t column) const {
    return static_cast<double>(Scale(row, column)) * codes_[row * k_ + column];
  }

  // Each code in turn to the level that is best given all others. True when one changed.
  bool SweepRow(int64_t row) {
    double* gradient = gradients_.data() + row * k_;
    bool changed = false;
    for (const int32_t column : problem_.factor.order()) {
      const double* hessian = problem_.hessian + column * k_;
      const double curvature = hessian[column] + added_;
      const double scale = Scale(row, column);
      if (IsDead(column) || scale == 0.0) continue;
      int8_t& code = codes_[row * k_ + column];
      const float level = Level(scale * code - gradient[column] / curvature, scale);
      const double step = scale * (level - static_cast<float>(code));  // z moves by this
      // 0 where the level is the same; ties and rounding must not make sweeps go on for ever.
      const double gain = -step * (2.0 * gradient[column] + step * curvature);
      if (!(gain > 1e-9 * scale * scale * curvature)) continue;
      code = static_cast<int8_t>(level);
      changed = true;
      for (int64_t j = 0; j < k_; ++j) gradient[j] += step * hessian[j];
      gradient[column] += step * added_;
    }
    return changed;
  }

  // The factor of all scales of the row that is best given its codes. True when it is not 1.
  bool RescaleRow(int64_t row) {
    double* gradient = gradients_.data() + row * k_;
    const double* output = outputs_.data() + row * k_;
    double product = 0.0;  // z H w
    double norm = 0.0;     // z H z
    for (int64_t i = 0; i < k_; ++i) {
      const double z = Value(row, i);
      product -= z * output[i];
      norm += z * (gradient[i] - output[i]);
    }
    if (!(norm > 0.0) || !(product > 0.0)) return false;
    const float before = channels_[row];
    const float after = RoundChannelScale(static_cast<float>(before * (product / norm)));
    if (after == before || !(after > 0.0F)) return false;
    SetChannel(row, after);
    const double ratio = static_cast<double>(after) / before;
    for (int64_t i = 0; i < k_; ++i) {
      gradient[i] = output[i] + ratio * (gradient[i] - output[i]);
    }
    return true;
  }

  const Problem& problem_;
  const int64_t first_row_;
  const int64_t k_;
  const int64_t num_rows_;
  const float* weights_;
  int8_t* codes_;
  float* scales_;
  float* channels_;
  const double added_;
  std::vector<double> outputs_;
  std::vector<double> gradients_;
};

// Scales as units * channels: S * c where the scheme folds, else the scales themselves times 1.
struct SplitScales {
  std::vector<float> units;
  std::vector<float> channels;
};

absl::StatusOr<SplitScales> Split(const std::vector<float>& scales, int64_t n, int64_t num_groups,
                                  const WeightScheme& scheme) {
  SplitScales split = {.units = scales,
                       .channels = std::vector<float>(static_cast<size_t>(n), 1.0F)};
  if (scheme.bits != 4 || !scheme.folded_scales) return split;
  // A weight of one column per group stands for its scales.
  kernels::Int4Weight stand_in = {.n = n, .k = num_groups, .group_size = 1};
  stand_in.codes.resize(static_cast<size_t>(n * stand_in.row_bytes()));
  stand_in.scales = scales;
  NIBBLE_ASSIGN_OR_RETURN(kernels::FoldedScales folded, kernels::FindFoldedScales(stand_in));
  split.units.assign(folded.integers.begin(), folded.integers.end());
  split.channels = std::move(folded.channel);
  return split;
}

}  // namespace

absl::StatusOr<GptqResult> QuantizeGptq(const Matrix& matrix, const InputStatistics& statistics,
                                        const HessianFactor& factor, const WeightScheme& scheme,
                                        const GptqOptions& options, ThreadPool* pool) try {
  const int64_t n = matrix.n;
  const int64_t k = matrix.k;
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(matrix, pool));
  NIBBLE_RETURN_IF_ERROR(Annotate(CheckScheme(scheme, k), matrix.name));
  NIBBLE_RETURN_IF_ERROR(CheckStatistics(matrix.name, statistics, k));
  if (factor.k() != k) {
    return InvalidArgument("{}: the factor is of {} inputs, the matrix has {}", matrix.name,
                           factor.k(), k);
  }
  const Grid grid = GridOf(scheme, k);
  std::vector<float> scales;
  if (options.scales != nullptr) {
    scales = *options.scales;
  } else {
    NIBBLE_ASSIGN_OR_RETURN(const QuantizedWeight rounded,
                            QuantizeRtnMatrix(matrix.weight.data(), n, k, scheme, pool));
    scales = std::visit([](const auto& weight) { return weight.scales; }, rounded);
  }
  auto ordinary = OrdinaryScales(std::move(scales), n, grid.num_groups, scheme);
  if (!ordinary.ok()) return Annotate(ordinary.status(), matrix.name);
  scales = std::move(ordinary).value();
  auto split = Split(scales, n, grid.num_groups, scheme);
  if (!split.ok()) return Annotate(split.status(), matrix.name);
  NIBBLE_ASSIGN_OR_RETURN(const SubtractProductFunction subtract_product, ChooseSubtractProduct());

  const Problem problem = {
      .matrix = matrix,
      .hessian = statistics.hessian.data(),
      .factor = factor,
      .grid = grid,
      .units = split->units.data(),
      .scale_trials =
          std::span(kScaleTrials).first(options.search_channel_scale ? std::size(kScaleTrials) : 1),
      .refinement_rounds = options.refinement_rounds,
      .subtract_product = subtract_product};
  std::vector<int8_t> codes(static_cast<size_t>(n * k));
  std::vector<double> errors(static_cast<size_t>(n));
  std::vector<double> signals(static_cast<size_t>(n));
  pool->ParallelFor(n, kTileRows, [&](int64_t begin, int64_t end) {
    Tile tile(problem, begin, end - begin, codes.data(), scales.data(), split->channels.data());
    tile.Round();
    tile.Refine();
    tile.Measure(errors.data() + begin, signals.data() + begin);
  });
  return GptqResult{.weight = PackCodes(n, k, scheme, codes, std::move(scales)),
                    .output_error = RelativeError(errors, signals)};
} catch (const std::bad_alloc&) {
  return ResourceExhausted("{}: no memory to quantize [{}, {}]", matrix.name, matrix.n, matrix.k);
}

}  // namespace nibble::quantize
