// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/quant/rtn.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "kernels/device/pick_by_isa.h"
#include "kernels/quant/rtn_kernels.h"

namespace nibble::kernels {
namespace {

// Above this the squared error of a channel could leave the float range, and the search with it.
constexpr float kLargestWeight = 1e15F;
constexpr float kSign[2] = {1.0F, -1.0F};

struct Kernels {
  decltype(&ref::RtnMaxAbs) max_abs;
  decltype(&ref::RtnMeasure) measure;
  decltype(&ref::RtnEstimate) estimate;
  decltype(&ref::RtnEncode) encode;
};

constexpr Kernels kRefKernels = {ref::RtnMaxAbs, ref::RtnMeasure, ref::RtnEstimate, ref::RtnEncode};
constexpr Kernels kAvx2Kernels = {avx2::RtnMaxAbs, avx2::RtnMeasure, avx2::RtnEstimate,
                                  avx2::RtnEncode};
constexpr Kernels kAvx512VnniKernels = {avx512vnni::RtnMaxAbs, avx512vnni::RtnMeasure,
                                        avx512vnni::RtnEstimate, avx512vnni::RtnEncode};

// Rounds to 7 significant bits. S * c is then exact in float32 and in float16, so that a checkpoint
// that stores products keeps the integers; steps of under 1.6 % cost nothing beside the search.
float RoundChannelScale(float value) {
  int exponent = 0;
  const float mantissa = std::frexp(value, &exponent);  // in [0.5, 1)
  return std::ldexp(std::nearbyint(mantissa * 128.0F), exponent - 7);
}

// The two integers around the free scale of each sign whose product with `channel` may suit a
// group; the two are equal at the ends of the range.
struct Integers {
  int magnitudes[2][2];

  Integers(const RtnGroup& group, float channel) {
    for (int sign = 0; sign < 2; ++sign) {
      const auto below = static_cast<int>(std::min(group.best_scale[sign] / channel, 1e3F));
      magnitudes[sign][0] = std::clamp(below, 1, RtnMaxInteger(sign));
      magnitudes[sign][1] = std::clamp(below + 1, 1, RtnMaxInteger(sign));
    }
  }
};

// Searches the scales of channels, one after the other.
class ChannelSearch {
 public:
  ChannelSearch(const Kernels& kernels, const RtnOptions& options, int64_t k, int64_t num_groups)
      : kernels_(kernels),
        options_(options),
        k_(k),
        groups_(static_cast<size_t>(num_groups)),
        integers_(static_cast<size_t>(num_groups)),
        levels_(static_cast<size_t>(k)) {}

  // Writes the scales and codes of a channel; false, having written nothing, for weights that are
  // not finite or too large.
  bool Quantize(const float* weights, float* scales, uint8_t* codes) {
    for (size_t g = 0; g < groups_.size(); ++g) {
      const int64_t begin = static_cast<int64_t>(g) * options_.group_size;
      RtnGroup& group = groups_[g];
      group.weights = weights + begin;
      group.count = std::min(options_.group_size, k_ - begin);
      group.max_abs = kernels_.max_abs(group.weights, group.count);
      if (!(group.max_abs <= kLargestWeight)) return false;
    }
    float largest_scale = 0.0F;
    for (size_t g = 0; g < groups_.size(); ++g) {
      Survey(&groups_[g]);
      const float best_scale = groups_[g].best_scale[groups_[g].best_sign];
      scales[g] = kSign[groups_[g].best_sign] * best_scale;
      largest_scale = std::max(largest_scale, best_scale);
    }
    if (options_.folded_scales && largest_scale > 0.0F) FoldScales(largest_scale, scales);
    Encode(weights, scales, codes);
    return true;
  }

 private:
  static constexpr int kMaxChannels = 64;
  static constexpr int kFinalists = 3;
  static_assert(kFinalists * 4 <= RtnTrial::kMaxScales && kRtnClips <= RtnTrial::kMaxScales);

  // Errors on the clipping grid, and the best of them.
  void Survey(RtnGroup* group) const {
    for (int sign = 0; sign < 2; ++sign) {
      std::fill(std::begin(group->errors[sign]), std::end(group->errors[sign]), 0.0F);
      group->best_scale[sign] = 0.0F;
    }
    group->best_sign = 0;
    if (group->max_abs < kRtnTiny) return;
    RtnTrial trial;
    trial.num_scales = kRtnClips;
    for (int i = 0; i < kRtnClips; ++i) {
      trial.scales[i] = group->max_abs / 7.0F * RtnClipFactor(i);
    }
    kernels_.measure(group->weights, group->count, group->max_abs, &trial);
    float least[2] = {};
    for (int sign = 0; sign < 2; ++sign) {
      const float* errors = trial.errors[sign];
      std::copy_n(errors, kRtnClips, group->errors[sign]);
      const int64_t best = std::min_element(errors, errors + kRtnClips) - errors;
      group->best_scale[sign] = trial.scales[best];
      least[sign] = errors[best];
    }
    group->best_sign = least[1] < least[0] ? 1 : 0;
  }

  // The channel scale of least squared error: all 7-bit candidates around max / 16 are ranked by
  // the interpolated errors, the best few by the exact ones.
  void FoldScales(float largest_scale, float* scales) {
    float finalists[kFinalists] = {};
    const int num_finalists = RankChannels(largest_scale, finalists);
    float totals[kFinalists] = {};
    for (size_t g = 0; g < groups_.size(); ++g) {
      ChooseIntegers(groups_[g], finalists, num_finalists, integers_[g].of_finalist, totals);
    }
    int best = 0;
    float best_error = INFINITY;
    for (int i = 0; i < num_finalists; ++i) {
      if (totals[i] >= best_error) continue;
      best_error = totals[i];
      best = i;
    }
    for (size_t g = 0; g < groups_.size(); ++g) {
      scales[g] = static_cast<float>(integers_[g].of_finalist[best]) * finalists[best];
    }
  }

  // The channel scales of least estimated error, best first; returns how many.
  int RankChannels(float largest_scale, float* finalists) const {
    float channels[kMaxChannels];
    int num_channels = 0;
    const float start = RoundChannelScale(largest_scale / 16.0F * 0.8F);
    const float step = start / 96.0F;         // finer than the 7-bit grid everywhere in the range
    for (int i = 0; i < kMaxChannels; ++i) {  // up to 1.33 * largest / 16
      const float channel = RoundChannelScale(start + step * static_cast<float>(i));
      if (num_channels > 0 && channel == channels[num_channels - 1]) continue;
      channels[num_channels++] = channel;
    }
    const int padded = (num_channels + kRtnLanes - 1) / kRtnLanes * kRtnLanes;
    std::fill(channels + num_channels, channels + padded, channels[num_channels - 1]);
    float totals[kMaxChannels];
    kernels_.estimate(groups_.data(), static_cast<int64_t>(groups_.size()), channels, padded,
                      totals);
    float estimates[kFinalists] = {INFINITY, INFINITY, INFINITY};
    int num_finalists = 0;
    for (int i = 0; i < num_channels; ++i) {
      for (int j = 0; j < kFinalists; ++j) {
        if (!(totals[i] < estimates[j])) continue;
        std::copy_backward(finalists + j, finalists + kFinalists - 1, finalists + kFinalists);
        std::copy_backward(estimates + j, estimates + kFinalists - 1, estimates + kFinalists);
        finalists[j] = channels[i];
        estimates[j] = totals[i];
        num_finalists = std::min(num_finalists + 1, kFinalists);
        break;
      }
    }
    return num_finalists;
  }

  // For each finalist the integer whose product with it has the least error in this group, which is
  // added to its total.
  void ChooseIntegers(const RtnGroup& group, const float* finalists, int num_finalists,
                      int8_t* integers, float* totals) const {
    std::fill_n(integers, kFinalists, int8_t{1});
    if (group.max_abs < kRtnTiny) return;
    RtnTrial trial;
    int places[kFinalists][2][2];  // in `trial`
    for (int i = 0; i < num_finalists; ++i) {
      const Integers around(group, finalists[i]);
      const int first = trial.num_scales;  // both signs often share their integers
      for (int sign = 0; sign < 2; ++sign) {
        for (int j = 0; j < 2; ++j) {
          const float scale = static_cast<float>(around.magnitudes[sign][j]) * finalists[i];
          int place = first;
          while (place < trial.num_scales && trial.scales[place] != scale) ++place;
          if (place == trial.num_scales) trial.scales[trial.num_scales++] = scale;
          places[i][sign][j] = place;
        }
      }
    }
    kernels_.measure(group.weights, group.count, group.max_abs, &trial);
    for (int i = 0; i < num_finalists; ++i) {
      const Integers around(group, finalists[i]);
      float least = INFINITY;
      for (int sign = 0; sign < 2; ++sign) {
        for (int j = 0; j < 2; ++j) {
          const float error = trial.errors[sign][places[i][sign][j]];
          if (!(error < least)) continue;
          least = error;
          const int magnitude = around.magnitudes[sign][j];
          integers[i] = static_cast<int8_t>(sign == 0 ? magnitude : -magnitude);
        }
      }
      totals[i] += least;
    }
  }

  void Encode(const float* weights, const float* scales, uint8_t* codes) {
    for (size_t g = 0; g < groups_.size(); ++g) {
      const float inverse = scales[g] != 0.0F ? 1.0F / scales[g] : 0.0F;
      const int64_t begin = static_cast<int64_t>(g) * options_.group_size;
      kernels_.encode(weights + begin, groups_[g].count, inverse, levels_.data() + begin);
    }
    for (int64_t i = 0; i < k_ / 2; ++i) {
      codes[i] = static_cast<uint8_t>(levels_[static_cast<size_t>(2 * i)] |
                                      levels_[static_cast<size_t>(2 * i + 1)] << 4);
    }
    if (k_ % 2 != 0) codes[k_ / 2] = levels_[static_cast<size_t>(k_ - 1)];
  }

  struct GroupIntegers {
    int8_t of_finalist[kFinalists];
  };

  const Kernels& kernels_;
  const RtnOptions& options_;
  const int64_t k_;
  std::vector<RtnGroup> groups_;
  std::vector<GroupIntegers> integers_;
  std::vector<uint8_t> levels_;  // [k], a code each
};

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
  const Kernels& kernels =
      *PickByIsa(options.isa, &kRefKernels, &kAvx2Kernels, &kAvx512VnniKernels);
  std::atomic<int64_t> first_bad{n * k};  // the lowest, so that the message is deterministic
  pool->ParallelFor(n, 4, [&](int64_t begin, int64_t end) {
    ChannelSearch search(kernels, options, k, result.num_groups());
    for (int64_t row = begin; row < end; ++row) {
      const float* source = weights + row * k;
      if (search.Quantize(source, result.scales.data() + row * result.num_groups(),
                          result.codes.data() + row * result.row_bytes())) {
        continue;
      }
      const float* bad = std::find_if_not(source, source + k,
                                          [](float w) { return std::abs(w) <= kLargestWeight; });
      const int64_t index = bad - weights;
      int64_t seen = first_bad.load();
      while (index < seen && !first_bad.compare_exchange_weak(seen, index)) {
      }
    }
  });
  if (const int64_t index = first_bad.load(); index < n * k) {
    return InvalidArgument("cannot quantize: weight [{}, {}] is {}, the limit is {} either way",
                           index / k, index % k, weights[index], kLargestWeight);
  }
  return result;
}

}  // namespace nibble::kernels
