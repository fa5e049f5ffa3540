// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/moe/route.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

namespace nibble::kernels {
namespace {

void RouteToken(const RouteArgs& args, int64_t token) {
  const float* const logits = args.logits + token * args.num_experts;
  int32_t* const ids = args.expert_ids + token * args.num_experts_per_tok;
  float* const weights = args.weights + token * args.num_experts_per_tok;
  const auto key = [logits](int32_t e) {
    return std::isnan(logits[e]) ? -std::numeric_limits<float>::infinity() : logits[e];
  };
  std::array<int32_t, kMaxExperts> order;
  const auto end = order.begin() + args.num_experts;
  std::iota(order.begin(), end, 0);
  std::partial_sort(
      order.begin(), order.begin() + args.num_experts_per_tok, end,
      [&](int32_t a, int32_t b) { return key(a) != key(b) ? key(a) > key(b) : a < b; });
  const float max = logits[order[0]];
  float sum = 0.0F;
  for (int64_t j = 0; j < args.num_experts_per_tok; ++j) {
    ids[j] = order[static_cast<size_t>(j)];
    weights[j] = std::exp(logits[ids[j]] - max);
    if (args.renormalize) sum += weights[j];
  }
  if (!args.renormalize) {
    for (int64_t e = 0; e < args.num_experts; ++e) sum += std::exp(logits[e] - max);
  }
  for (int64_t j = 0; j < args.num_experts_per_tok; ++j) weights[j] /= sum;
}

}  // namespace

void Route(const RouteArgs& args, Isa /*isa*/, ThreadPool* pool) {
  pool->ParallelFor(args.num_tokens, 16, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) RouteToken(args, token);
  });
}

}  // namespace nibble::kernels
