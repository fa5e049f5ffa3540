// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/methods/equalization.h"

#include <algorithm>
#include <cmath>

#include "base/float16.h"

namespace nibble::quantize {
namespace {

// Beyond these a scale would push half-precision norms or activations out of range; useful ones
// stay within some tens.
constexpr float kSmallestScale = 0x1p-14F;
constexpr float kLargestScale = 0x1p14F;

absl::Status CheckMatrix(const char* name, const Matrix& matrix, int64_t n, int64_t k) {
  if (matrix.n != n || matrix.k != k) {
    return InvalidArgument("layer's {} is [{}, {}], the block needs [{}, {}]", name, matrix.n,
                           matrix.k, n, k);
  }
  if (static_cast<int64_t>(matrix.weight.size()) != n * k) {
    return InvalidArgument("layer's {} holds {} weights, [{}, {}] needs {}", name,
                           matrix.weight.size(), n, k, n * k);
  }
  if (!matrix.bias.empty() && static_cast<int64_t>(matrix.bias.size()) != n) {
    return InvalidArgument("layer's {} has {} biases for {} outputs", name, matrix.bias.size(), n);
  }
  return absl::OkStatus();
}

absl::Status CheckNorm(const char* name, const std::vector<float>& norm, int64_t size,
                       bool optional) {
  if ((optional && norm.empty()) || static_cast<int64_t>(norm.size()) == size) {
    return absl::OkStatus();
  }
  return InvalidArgument("layer's {} has {} values, the block needs {}", name, norm.size(), size);
}

void ScaleColumns(const std::vector<float>& scale, Matrix* matrix) {
  for (int64_t row = 0; row < matrix->n; ++row) {
    float* weights = matrix->weight.data() + row * matrix->k;
    for (int64_t j = 0; j < matrix->k; ++j) weights[j] *= scale[static_cast<size_t>(j)];
  }
}

void DivideRow(int64_t row, float scale, Matrix* matrix) {
  float* weights = matrix->weight.data() + row * matrix->k;
  for (int64_t j = 0; j < matrix->k; ++j) weights[j] /= scale;
  if (!matrix->bias.empty()) matrix->bias[static_cast<size_t>(row)] /= scale;
}

// Where the quotient is a bfloat16 but for the rounding of the division (FitScale sees to that), it
// becomes that bfloat16.
void DivideNorm(const std::vector<float>& scale, std::vector<float>* norm) {
  for (size_t j = 0; j < norm->size(); ++j) {
    const float quotient = (*norm)[j] / scale[j];
    const float rounded = ToFloat(ToBFloat16(quotient));
    const bool same = std::abs(quotient - rounded) <= 0x1p-22F * std::abs(quotient);
    (*norm)[j] = same ? rounded : quotient;
  }
}

// The channel of o's input that v row `row` makes for query head `member` of its group.
size_t ChannelOfValueRow(const AttentionShape& shape, int64_t row, int64_t member) {
  const int64_t group = shape.num_heads / shape.num_kv_heads;
  const int64_t head = row / shape.head_dim * group + member;
  return static_cast<size_t>(head * shape.head_dim + row % shape.head_dim);
}

void TieGroups(const AttentionShape& shape, std::vector<float>* scale) {
  const int64_t group = shape.num_heads / shape.num_kv_heads;
  for (int64_t row = 0; row < shape.num_kv_heads * shape.head_dim; ++row) {
    double sum_of_logs = 0.0;
    for (int64_t member = 0; member < group; ++member) {
      sum_of_logs += std::log((*scale)[ChannelOfValueRow(shape, row, member)]);
    }
    const auto shared = static_cast<float>(std::exp(sum_of_logs / static_cast<double>(group)));
    for (int64_t member = 0; member < group; ++member) {
      (*scale)[ChannelOfValueRow(shape, row, member)] = shared;
    }
  }
}

void FitToNorm(const std::vector<float>& norm, std::vector<float>* scale) {
  for (size_t j = 0; j < norm.size(); ++j) {
    const float rounded = ToFloat(ToBFloat16(norm[j] / (*scale)[j]));
    const float fitted = norm[j] / rounded;
    // Not for a norm of zero or so small that the quotient is subnormal.
    (*scale)[j] = std::abs(rounded) >= 0x1p-120F && std::isfinite(fitted) ? fitted : 1.0F;
  }
}

absl::Status CheckScale(const std::vector<float>& scale, int64_t num_channels) {
  if (static_cast<int64_t>(scale.size()) != num_channels) {
    return InvalidArgument("{} scales for {} channels", scale.size(), num_channels);
  }
  for (size_t j = 0; j < scale.size(); ++j) {
    if (!(scale[j] > 0.0F) || !std::isfinite(scale[j])) {
      return InvalidArgument("the scale of channel {} is {}, it must be positive and finite", j,
                             scale[j]);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckTied(const AttentionShape& shape, const std::vector<float>& scale) {
  const int64_t group = shape.num_heads / shape.num_kv_heads;
  for (int64_t row = 0; row < shape.num_kv_heads * shape.head_dim; ++row) {
    const size_t first = ChannelOfValueRow(shape, row, 0);
    for (int64_t member = 1; member < group; ++member) {
      const size_t channel = ChannelOfValueRow(shape, row, member);
      if (scale[channel] != scale[first]) {
        return InvalidArgument("channels {} and {} share a row of v but have scales {} and {}",
                               first, channel, scale[first], scale[channel]);
      }
    }
  }
  return absl::OkStatus();
}

template <typename Block>
auto Consumers(Site site, Block* block) {
  using Pointer = decltype(&block->q);
  switch (site) {
    case Site::kQkv:
      return std::vector<Pointer>{&block->q, &block->k, &block->v};
    case Site::kO:
      return std::vector<Pointer>{&block->o};
    case Site::kGateUp:
      return std::vector<Pointer>{&block->gate, &block->up};
    case Site::kDown:
      break;
  }
  return std::vector<Pointer>{&block->down};
}

}  // namespace

std::string_view ToString(Site site) {
  switch (site) {
    case Site::kQkv:
      return "qkv";
    case Site::kO:
      return "o";
    case Site::kGateUp:
      return "gate_up";
    case Site::kDown:
      break;
  }
  return "down";
}

absl::Status ValidateBlock(const AttentionShape& shape, const BlockWeights& block) {
  constexpr int64_t kMax = int64_t{1} << 24;
  if (shape.num_heads < 1 || shape.num_heads > kMax || shape.head_dim < 1 ||
      shape.head_dim > kMax || shape.num_kv_heads < 1 ||
      shape.num_heads % shape.num_kv_heads != 0) {
    return InvalidArgument("{} heads, {} of them for keys, of {} channels: no attention's shape",
                           shape.num_heads, shape.num_kv_heads, shape.head_dim);
  }
  const auto hidden = static_cast<int64_t>(block.input_norm.size());
  const int64_t q_size = shape.num_heads * shape.head_dim;
  const int64_t kv_size = shape.num_kv_heads * shape.head_dim;
  const int64_t ffn = block.gate.n;
  const bool has_network = !block.moe || ffn > 0;
  if (hidden < 1 || hidden > kMax || (has_network && ffn < 1) || ffn > kMax || q_size > kMax) {
    return InvalidArgument("layer of {} channels, {} in attention, {} in its MLP: the limit is {}",
                           hidden, q_size, ffn, kMax);
  }
  NIBBLE_RETURN_IF_ERROR(
      CheckNorm("post_attention_norm", block.post_attention_norm, hidden, false));
  NIBBLE_RETURN_IF_ERROR(CheckNorm("q_norm", block.q_norm, shape.head_dim, true));
  NIBBLE_RETURN_IF_ERROR(CheckNorm("k_norm", block.k_norm, shape.head_dim, true));
  NIBBLE_RETURN_IF_ERROR(CheckMatrix("q", block.q, q_size, hidden));
  NIBBLE_RETURN_IF_ERROR(CheckMatrix("k", block.k, kv_size, hidden));
  NIBBLE_RETURN_IF_ERROR(CheckMatrix("v", block.v, kv_size, hidden));
  NIBBLE_RETURN_IF_ERROR(CheckMatrix("o", block.o, hidden, q_size));
  if (!has_network) return absl::OkStatus();
  NIBBLE_RETURN_IF_ERROR(CheckMatrix("gate", block.gate, ffn, hidden));
  NIBBLE_RETURN_IF_ERROR(CheckMatrix("up", block.up, ffn, hidden));
  return CheckMatrix("down", block.down, hidden, ffn);
}

InputStatistics& StatisticsOf(Site site, BlockStatistics* statistics) {
  switch (site) {
    case Site::kQkv:
      return statistics->qkv;
    case Site::kO:
      return statistics->o;
    case Site::kGateUp:
      return statistics->gate_up;
    case Site::kDown:
      break;
  }
  return statistics->down;
}

const InputStatistics& StatisticsOf(Site site, const BlockStatistics& statistics) {
  return StatisticsOf(site, const_cast<BlockStatistics*>(&statistics));
}

std::vector<Matrix*> ConsumersOf(Site site, BlockWeights* block) { return Consumers(site, block); }
std::vector<const Matrix*> ConsumersOf(Site site, const BlockWeights& block) {
  return Consumers(site, &block);
}

absl::Status ValidateStatistics(const InputStatistics& statistics) {
  const int64_t k = statistics.k;
  const auto is_finite = [](auto value) { return std::isfinite(value); };
  const auto holds = [&](const auto& values, int64_t count) {
    return static_cast<int64_t>(values.size()) == count &&
           std::all_of(values.begin(), values.end(), is_finite);
  };
  if (k < 1 || !holds(statistics.abs_max, k) || !holds(statistics.abs_mean, k) ||
      !(statistics.hessian.empty() || holds(statistics.hessian, k * k)) ||
      statistics.num_samples < 0 || !holds(statistics.samples, statistics.num_samples * k)) {
    return InvalidArgument(
        "statistics of {} channels: {} maxima, {} means, {} elements of the Hessian and {} of {} "
        "samples do not fit together or are not finite",
        k, statistics.abs_max.size(), statistics.abs_mean.size(), statistics.hessian.size(),
        statistics.samples.size(), statistics.num_samples);
  }
  return absl::OkStatus();
}

void FitScale(Site site, const AttentionShape& shape, const BlockWeights& block,
              std::vector<float>* scale) {
  for (float& s : *scale) {
    s = s > 0.0F && std::isfinite(s) ? std::clamp(s, kSmallestScale, kLargestScale) : 1.0F;
  }
  if (site == Site::kO) TieGroups(shape, scale);
  if (site == Site::kQkv) FitToNorm(block.input_norm, scale);
  if (site == Site::kGateUp) FitToNorm(block.post_attention_norm, scale);
}

absl::Status ApplyScale(Site site, const AttentionShape& shape, const std::vector<float>& scale,
                        BlockWeights* block) {
  NIBBLE_RETURN_IF_ERROR(ValidateBlock(shape, *block));
  if (block->moe && site == Site::kGateUp) {
    return InvalidArgument("the input of gate and up is the router's and all experts' too");
  }
  NIBBLE_RETURN_IF_ERROR(CheckScale(scale, ConsumersOf(site, block).front()->k));
  if (site == Site::kO) NIBBLE_RETURN_IF_ERROR(CheckTied(shape, scale));
  for (Matrix* consumer : ConsumersOf(site, block)) ScaleColumns(scale, consumer);
  switch (site) {
    case Site::kQkv:
      DivideNorm(scale, &block->input_norm);
      break;
    case Site::kGateUp:
      DivideNorm(scale, &block->post_attention_norm);
      break;
    case Site::kO:
      for (int64_t row = 0; row < block->v.n; ++row) {
        DivideRow(row, scale[ChannelOfValueRow(shape, row, 0)], &block->v);
      }
      break;
    case Site::kDown:
      for (int64_t row = 0; row < block->up.n; ++row) {
        DivideRow(row, scale[static_cast<size_t>(row)], &block->up);
      }
      break;
  }
  return absl::OkStatus();
}

absl::Status ScaleStatistics(const std::vector<float>& scale, InputStatistics* statistics) {
  NIBBLE_RETURN_IF_ERROR(ValidateStatistics(*statistics));
  NIBBLE_RETURN_IF_ERROR(CheckScale(scale, statistics->k));
  const auto k = static_cast<size_t>(statistics->k);
  for (size_t j = 0; j < k; ++j) {
    statistics->abs_max[j] /= scale[j];
    statistics->abs_mean[j] /= scale[j];
  }
  for (size_t i = 0; i < statistics->samples.size(); ++i) statistics->samples[i] /= scale[i % k];
  for (size_t i = 0; i < statistics->hessian.size(); ++i) {
    statistics->hessian[i] /= static_cast<double>(scale[i / k]) * static_cast<double>(scale[i % k]);
  }
  return absl::OkStatus();
}

}  // namespace nibble::quantize
