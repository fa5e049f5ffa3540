// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/sampling/top_tokens.h"

#include <algorithm>
#include <array>
#include <limits>

namespace nibble::engine {
namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();
// Small enough to stay in the L1 cache for the second look, large enough that the maximum of a
// block, 16 lanes at a time, is most of the work.
constexpr size_t kBlock = 512;
constexpr size_t kLanes = 16;

float BlockMax(std::span<const float> block) {
  std::array<float, kLanes> lanes;
  lanes.fill(kNegativeInfinity);
  size_t i = 0;
  for (; i + kLanes <= block.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      // Written so that NaN loses, and as the one instruction that does this.
      lanes[lane] = block[i + lane] > lanes[lane] ? block[i + lane] : lanes[lane];
    }
  }
  float result = kNegativeInfinity;
  for (; i < block.size(); ++i) result = block[i] > result ? block[i] : result;
  for (const float lane : lanes) result = lane > result ? lane : result;
  return result;
}

}  // namespace

Candidate FindBest(std::span<const float> logits) {
  Candidate best{.logit = kNegativeInfinity, .token_id = 0};
  for (size_t begin = 0; begin < logits.size(); begin += kBlock) {
    const auto block = logits.subspan(begin, std::min(kBlock, logits.size() - begin));
    const float block_max = BlockMax(block);
    if (!(block_max > best.logit)) continue;
    const auto offset = std::find(block.begin(), block.end(), block_max) - block.begin();
    best = {.logit = block_max,
            .token_id = static_cast<int32_t>(begin) + static_cast<int32_t>(offset)};
  }
  return best;
}

std::vector<Candidate> FindTop(std::span<const float> logits, size_t count) {
  std::vector<Candidate> top;
  count = std::min(count, logits.size());
  if (count == 0) return top;
  // Candidates gather to twice `count`, then the better half stays and its worst becomes the bar:
  // O(vocabulary) for any count. Ids ascend, so a later token that only equals the bar loses.
  const size_t capacity = std::min(2 * count + 64, logits.size());
  top.reserve(capacity);
  float bar = kNegativeInfinity;
  const auto keep_best = [&top, count] {
    if (top.size() <= count) return;
    std::nth_element(top.begin(), top.begin() + static_cast<ptrdiff_t>(count) - 1, top.end(),
                     RanksBefore);
    top.resize(count);
  };
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] > bar)) continue;
    top.push_back({.logit = logits[i], .token_id = static_cast<int32_t>(i)});
    if (top.size() < capacity) continue;
    keep_best();
    bar = top.size() == count ? top.back().logit : bar;
  }
  keep_best();
  std::sort(top.begin(), top.end(), RanksBefore);
  return top;
}

}  // namespace nibble::engine
