// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/quant/rtn.h"

#include <algorithm>
#include <atomic>
#include <cmath>

namespace nibble::kernels {
namespace {

// Below this a channel is stored as zeros: 1 / scale would leave the float range.
constexpr float kTiny = 1e-30F;
// Above this the squared error of a channel could leave the float range, and the search with it.
constexpr float kLargestWeight = 1e15F;
// S in 1..16 and in -15..-1 (see FoldedScales).
constexpr int kMaxInteger[2] = {16, 15};
constexpr float kSign[2] = {1.0F, -1.0F};

// Clipping grid of a group: scale = max|w| / 7 * kClip[i]. 1 keeps every weight in range; smaller
// factors clip the largest weights for finer steps on the rest, which pays for groups of up to some
// hundred weights. 7/8 still represents a negative maximum exactly.
constexpr int kNumClips = 12;
constexpr float kFirstClip = 0.55F;
constexpr float kClipStep = 0.045F;  // up to 1.045

constexpr float ClipFactor(int i) { return kFirstClip + kClipStep * static_cast<float>(i); }

// Nearest integer, ties to even, for |x| < 2^22. std::nearbyint is a call on the baseline
// instruction set and would keep the loops below scalar.
inline float Round(float x) {
  constexpr float kMagic = 12582912.0F;  // 1.5 * 2^23
  return (x + kMagic) - kMagic;
}

inline float RoundToCode(float x) { return Round(std::min(std::max(x, -8.0F), 7.0F)); }

// Squared error of a group at `scale`, of either sign. Sixteen running sums in a fixed order: the
// compiler may keep them in vector registers, and the result does not depend on the machine.
float SquaredError(const float* weights, int64_t count, float scale) {
  constexpr int kLanes = 16;
  float sums[kLanes] = {};
  const float inverse = 1.0F / scale;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float w = weights[i + lane];
      const float error = w - scale * RoundToCode(w * inverse);
      sums[lane] += error * error;
    }
  }
  float total = 0.0F;
  for (; i < count; ++i) {
    const float error = weights[i] - scale * RoundToCode(weights[i] * inverse);
    total += error * error;
  }
  for (float sum : sums) total += sum;
  return total;
}

// What is known about a group before its channel's scale is chosen, for scales of both signs.
struct Group {
  const float* weights;
  int64_t count;
  float max_abs;
  float errors[2][kNumClips];  // squared error at kSign[s] * max_abs / 7 * ClipFactor(i)
  float best_scale[2];         // magnitudes; 0 for a group of zeros
  int best_sign;               // index of the sign of less error

  // Squared error at a scale of this sign and magnitude, interpolated; cheap enough to rank all
  // channel scales.
  float EstimateError(int sign, float scale) const {
    const float* known = errors[sign];
    const float position = (scale / (max_abs / 7.0F) - kFirstClip) / kClipStep;
    if (position <= 0.0F) {  // ever more weights clip
      return known[0] * (1.0F - position) * (1.0F - position);
    }
    const float last = kNumClips - 1;
    if (position >= last) {  // no clipping: the error grows with the square of the step
      const float ratio = scale / (max_abs / 7.0F * ClipFactor(kNumClips - 1));
      return known[kNumClips - 1] * ratio * ratio;
    }
    const int i = static_cast<int>(position);
    const float fraction = position - static_cast<float>(i);
    return known[i] + fraction * (known[i + 1] - known[i]);
  }

  float ExactError(int sign, float scale) const {
    return SquaredError(weights, count, kSign[sign] * scale);
  }
};

Group Survey(const float* weights, int64_t count) {
  Group group = {};
  group.weights = weights;
  group.count = count;
  for (int64_t i = 0; i < count; ++i) {
    group.max_abs = std::max(group.max_abs, std::abs(weights[i]));
  }
  if (group.max_abs < kTiny) return group;
  int best[2] = {};
  for (int sign = 0; sign < 2; ++sign) {
    for (int i = 0; i < kNumClips; ++i) {
      group.errors[sign][i] = group.ExactError(sign, group.max_abs / 7.0F * ClipFactor(i));
      if (group.errors[sign][i] < group.errors[sign][best[sign]]) best[sign] = i;
    }
    group.best_scale[sign] = group.max_abs / 7.0F * ClipFactor(best[sign]);
  }
  group.best_sign = group.errors[1][best[1]] < group.errors[0][best[0]] ? 1 : 0;
  return group;
}

// The integer whose product with `channel` suits the group best by `error(sign, scale)`: of the two
// around the free scale of each sign.
template <typename Error>
int BestInteger(const Group& group, float channel, const Error& error, float* least) {
  *least = 0.0F;
  if (group.max_abs < kTiny) return 1;
  *least = INFINITY;
  int best = 1;
  for (int sign = 0; sign < 2; ++sign) {
    const auto below = static_cast<int>(std::min(group.best_scale[sign] / channel, 1e3F));
    for (int integer = below; integer <= below + 1; ++integer) {
      const int magnitude = std::clamp(integer, 1, kMaxInteger[sign]);
      const float candidate = error(sign, static_cast<float>(magnitude) * channel);
      if (candidate < *least) {
        *least = candidate;
        best = sign == 0 ? magnitude : -magnitude;
      }
      if (magnitude > integer || magnitude == kMaxInteger[sign]) break;
    }
  }
  return best;
}

// Rounds to 7 significant bits. S * c is then exact in float32 and in float16, so that a checkpoint
// that stores products keeps the integers; steps of under 1.6 % cost nothing beside the search.
float RoundChannelScale(float value) {
  int exponent = 0;
  const float mantissa = std::frexp(value, &exponent);  // in [0.5, 1)
  return std::ldexp(std::nearbyint(mantissa * 128.0F), exponent - 7);
}

// The channel scale of least squared error: all 7-bit candidates around max / 16 are ranked by the
// interpolated errors, the best few by the exact ones.
float FindChannelScale(const std::vector<Group>& groups, float largest_scale) {
  constexpr int kFinalists = 3;
  float finalists[kFinalists] = {};
  float estimates[kFinalists] = {INFINITY, INFINITY, INFINITY};
  const float start = RoundChannelScale(largest_scale / 16.0F * 0.8F);
  const float step = start / 96.0F;  // finer than the 7-bit grid everywhere in the range
  float previous = 0.0F;
  for (int i = 0; i < 64; ++i) {  // up to 1.33 * largest / 16
    const float channel = RoundChannelScale(start + step * static_cast<float>(i));
    if (channel == previous) continue;
    previous = channel;
    float total = 0.0F;
    for (const Group& group : groups) {
      float least = 0.0F;
      BestInteger(
          group, channel, [&](int sign, float scale) { return group.EstimateError(sign, scale); },
          &least);
      total += least;
    }
    for (int j = 0; j < kFinalists; ++j) {
      if (total >= estimates[j]) continue;
      std::copy_backward(finalists + j, finalists + kFinalists - 1, finalists + kFinalists);
      std::copy_backward(estimates + j, estimates + kFinalists - 1, estimates + kFinalists);
      finalists[j] = channel;
      estimates[j] = total;
      break;
    }
  }
  float best = finalists[0];
  float best_error = INFINITY;
  for (float channel : finalists) {
    if (channel == 0.0F) continue;
    float total = 0.0F;
    for (const Group& group : groups) {
      float least = 0.0F;
      BestInteger(
          group, channel, [&](int sign, float scale) { return group.ExactError(sign, scale); },
          &least);
      total += least;
    }
    if (total < best_error) {
      best_error = total;
      best = channel;
    }
  }
  return best;
}

void QuantizeChannel(const float* weights, const RtnOptions& options, int64_t row,
                     std::vector<Group>* groups, Int4Weight* result) {
  const int64_t num_groups = result->num_groups();
  float* scales = result->scales.data() + row * num_groups;
  float largest_scale = 0.0F;
  for (int64_t g = 0; g < num_groups; ++g) {
    const int64_t begin = g * result->group_size;
    Group& group = (*groups)[static_cast<size_t>(g)];
    group = Survey(weights + begin, std::min(result->group_size, result->k - begin));
    const float best_scale = group.best_scale[group.best_sign];
    scales[g] = kSign[group.best_sign] * best_scale;
    largest_scale = std::max(largest_scale, best_scale);
  }
  if (options.folded_scales && largest_scale > 0.0F) {
    const float channel = FindChannelScale(*groups, largest_scale);
    for (int64_t g = 0; g < num_groups; ++g) {
      const Group& group = (*groups)[static_cast<size_t>(g)];
      float least = 0.0F;
      const int integer = BestInteger(
          group, channel, [&](int sign, float scale) { return group.ExactError(sign, scale); },
          &least);
      scales[g] = static_cast<float>(integer) * channel;
    }
  }
  uint8_t* codes = result->codes.data() + row * result->row_bytes();
  for (int64_t k = 0; k < result->k; ++k) {
    const float scale = scales[k / result->group_size];
    const float inverse = scale != 0.0F ? 1.0F / scale : 0.0F;
    const int code = static_cast<int>(RoundToCode(weights[k] * inverse)) + 8;
    codes[k / 2] = static_cast<uint8_t>(codes[k / 2] | (k % 2 == 0 ? code : code << 4));
  }
}

}  // namespace

absl::StatusOr<Int4Weight> QuantizeRtn(const float* weights, int64_t n, int64_t k,
                                       const RtnOptions& options, ThreadPool* pool) {
  Int4Weight result;
  result.n = n;
  result.k = k;
  result.group_size = options.group_size;
  constexpr int64_t kMaxDimension = int64_t{1} << 30;
  if (n < 0 || n > kMaxDimension || k < 1 || k > kMaxDimension) {
    return InvalidArgument("cannot quantize a matrix [{}, {}]: the limits are n 0..{}, k 1..{}", n,
                           k, kMaxDimension, kMaxDimension);
  }
  if (options.group_size < 1 || options.group_size > kMaxDimension) {
    return InvalidArgument("group_size is {}, the range is 1..{}", options.group_size,
                           kMaxDimension);
  }
  result.codes.resize(static_cast<size_t>(n * result.row_bytes()));
  result.scales.resize(static_cast<size_t>(n * result.num_groups()));
  std::atomic<int64_t> first_bad{n * k};  // the lowest, so that the message is deterministic
  pool->ParallelFor(n, 4, [&](int64_t begin, int64_t end) {
    std::vector<Group> groups(static_cast<size_t>(result.num_groups()));
    for (int64_t row = begin; row < end; ++row) {
      const float* source = weights + row * k;
      const float* bad = std::find_if_not(source, source + k,
                                          [](float w) { return std::abs(w) <= kLargestWeight; });
      if (bad != source + k) {
        const int64_t index = bad - weights;
        int64_t seen = first_bad.load();
        while (index < seen && !first_bad.compare_exchange_weak(seen, index)) {
        }
        continue;
      }
      QuantizeChannel(source, options, row, &groups, &result);
    }
  });
  if (const int64_t index = first_bad.load(); index < n * k) {
    return InvalidArgument("cannot quantize: weight [{}, {}] is {}, the limit is {} either way",
                           index / k, index % k, weights[index], kLargestWeight);
  }
  return result;
}

}  // namespace nibble::kernels
