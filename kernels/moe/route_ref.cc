// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/moe/route_row.h"

namespace nibble::kernels::ref {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// exp of x <= 0 with the operations, and so the bits, of Exp in kernels/device/math_avx2.h and
// math_avx512.h.
float Exp(float x) {
  x = std::max(x, -105.0F);
  const float n = std::nearbyint(x * 0x1.715476p+0F);
  float r = std::fma(-n, 0x1.62e43p-1F, x);
  r = std::fma(-n, -0x1.05c61p-29F, r);
  float poly = 1.0F / 5040.0F;
  for (const float coefficient :
       {1.0F / 720.0F, 1.0F / 120.0F, 1.0F / 24.0F, 1.0F / 6.0F, 0.5F, 1.0F, 1.0F}) {
    poly = std::fma(poly, r, coefficient);
  }
  return std::ldexp(poly, static_cast<int>(n));
}

// Of the softmax over all experts: lanes e mod 16, then halves onto each other.
float SumOfAll(const RouteRow& row, float max) {
  float lanes[16] = {};
  for (int64_t e = 0; e < row.num_experts; ++e) lanes[e % 16] += Exp(row.logits[e] - max);
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

}  // namespace

void RouteToken(const RouteRow& row) {
  const auto key = [&row](int64_t e) {
    return std::isnan(row.logits[e]) ? -kInfinity : row.logits[e];
  };
  for (int64_t j = 0; j < row.num_experts_per_tok; ++j) {
    // The best of those that come after the one chosen last.
    int64_t best = -1;
    for (int64_t e = 0; e < row.num_experts; ++e) {
      if (j > 0) {
        const int64_t last = row.expert_ids[j - 1];
        const bool is_after = key(e) < key(last) || (key(e) == key(last) && e > last);
        if (!is_after) continue;
      }
      if (best < 0 || key(e) > key(best)) best = e;
    }
    row.expert_ids[j] = static_cast<int32_t>(best);
  }

  const float max = key(row.expert_ids[0]);
  bool is_finite = std::isfinite(max);
  for (int64_t e = 0; e < row.num_experts; ++e) is_finite &= !std::isnan(row.logits[e]);
  if (!is_finite) {
    std::fill_n(row.weights, row.num_experts_per_tok, std::numeric_limits<float>::quiet_NaN());
    return;
  }
  float sum = 0.0F;
  for (int64_t j = 0; j < row.num_experts_per_tok; ++j) {
    row.weights[j] = Exp(row.logits[row.expert_ids[j]] - max);
    sum += row.weights[j];
  }
  if (!row.renormalize) sum = SumOfAll(row, max);
  for (int64_t j = 0; j < row.num_experts_per_tok; ++j) row.weights[j] /= sum;
}

}  // namespace nibble::kernels::ref
