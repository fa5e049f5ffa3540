// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Random decoder layers, their inputs, and the statistics these give, for tests of methods.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"

#include "base/cpu_features.h"
#include "kernels/rope/rope.h"
#include "quantize/methods/calibration_data.h"
#include "quantize/methods/equalization.h"
#include "quantize/methods/float_block.h"
#include "tests/testing/random.h"

namespace nibble::quantize::testing {

struct BlockSizes {
  AttentionShape attention = {.num_heads = 4, .num_kv_heads = 2, .head_dim = 16};
  int64_t hidden = 32;
  int64_t ffn = 48;
  bool biases = false;
  bool qk_norms = false;
  // A mixture of experts, each of `ffn`.
  int64_t experts = 0;
  int64_t experts_per_tok = 2;
  bool norm_topk_prob = true;
  int64_t shared_ffn = 0;
};

inline Matrix RandomMatrix(const char* name, int64_t n, int64_t k, bool bias,
                           nibble::testing::Random* random) {
  Matrix matrix = {.name = name, .n = n, .k = k};
  matrix.weight = random->Normals(n * k, 1.0F / std::sqrt(static_cast<float>(k)));
  if (bias) matrix.bias = random->Normals(n, 0.3F);
  return matrix;
}

inline std::vector<float> RandomNorm(int64_t size, nibble::testing::Random* random) {
  std::vector<float> norm(static_cast<size_t>(size));
  for (float& value : norm) value = random->Uniform(0.5F, 1.5F);
  return norm;
}

inline FeedForward RandomNetwork(int64_t hidden, int64_t ffn, bool biases,
                                 nibble::testing::Random* random) {
  FeedForward network;
  network.gate = RandomMatrix("gate", ffn, hidden, biases, random);
  network.up = RandomMatrix("up", ffn, hidden, biases, random);
  network.down = RandomMatrix("down", hidden, ffn, biases, random);
  return network;
}

inline MoeWeights RandomMoe(const BlockSizes& sizes, nibble::testing::Random* random) {
  MoeWeights moe;
  moe.num_experts_per_tok = sizes.experts_per_tok;
  moe.norm_topk_prob = sizes.norm_topk_prob;
  moe.router = RandomMatrix("router", sizes.experts, sizes.hidden, false, random);
  moe.shared_gate =
      RandomMatrix("shared_gate", sizes.shared_ffn > 0 ? 1 : 0, sizes.hidden, false, random);
  for (int64_t e = 0; e < sizes.experts; ++e) {
    moe.experts.push_back(RandomNetwork(sizes.hidden, sizes.ffn, false, random));
  }
  if (sizes.shared_ffn > 0) {
    moe.experts.push_back(RandomNetwork(sizes.hidden, sizes.shared_ffn, false, random));
  }
  return moe;
}

inline BlockWeights RandomBlock(const BlockSizes& sizes, uint32_t seed) {
  nibble::testing::Random random(seed);
  const int64_t q = sizes.attention.num_heads * sizes.attention.head_dim;
  const int64_t kv = sizes.attention.num_kv_heads * sizes.attention.head_dim;
  BlockWeights block;
  block.input_norm = RandomNorm(sizes.hidden, &random);
  block.post_attention_norm = RandomNorm(sizes.hidden, &random);
  if (sizes.qk_norms) {
    block.q_norm = RandomNorm(sizes.attention.head_dim, &random);
    block.k_norm = RandomNorm(sizes.attention.head_dim, &random);
  }
  block.q = RandomMatrix("q", q, sizes.hidden, sizes.biases, &random);
  block.k = RandomMatrix("k", kv, sizes.hidden, sizes.biases, &random);
  block.v = RandomMatrix("v", kv, sizes.hidden, sizes.biases, &random);
  block.o = RandomMatrix("o", sizes.hidden, q, sizes.biases, &random);
  if (sizes.experts > 0) {
    block.moe = RandomMoe(sizes, &random);
  } else {
    static_cast<FeedForward&>(block) =
        RandomNetwork(sizes.hidden, sizes.ffn, sizes.biases, &random);
  }
  return block;
}

inline kernels::RopeTable MakeRope(const BlockSizes& sizes, int64_t positions) {
  ThreadPool pool(1);
  return kernels::MakeRopeTable({.rotary_dim = sizes.attention.head_dim}, positions, &pool);
}

inline InputStatistics StatisticsOfRows(const std::vector<float>& rows, int64_t k) {
  InputStatistics statistics;
  statistics.k = k;
  statistics.num_tokens = static_cast<int64_t>(rows.size()) / k;
  statistics.hessian.resize(static_cast<size_t>(k * k));
  statistics.abs_max.resize(static_cast<size_t>(k));
  statistics.abs_mean.resize(static_cast<size_t>(k));
  const auto width = static_cast<size_t>(k);
  const auto num_tokens = static_cast<double>(statistics.num_tokens);
  for (size_t begin = 0; begin < rows.size(); begin += width) {
    for (size_t i = 0; i < width; ++i) {
      const float x = rows[begin + i];
      statistics.abs_max[i] = std::max(statistics.abs_max[i], std::abs(x));
      statistics.abs_mean[i] += std::abs(x) / static_cast<float>(num_tokens);
      for (size_t j = 0; j < width; ++j) {
        statistics.hessian[i * width + j] += static_cast<double>(x) * rows[begin + j] / num_tokens;
      }
    }
  }
  statistics.num_samples = statistics.num_tokens;
  statistics.samples = rows;
  return statistics;
}

// What calibration sees when `x` [num_tokens, hidden] enters the block.
inline BlockStatistics StatisticsOfBlock(const BlockWeights& weights, const BlockSettings& settings,
                                         const std::vector<float>& x, ThreadPool* pool) {
  auto block = FloatBlock::Create(weights, settings, Gradient::kNone, pool);
  EXPECT_TRUE(block.ok()) << block.status();
  BlockTrace trace;
  const auto num_tokens = static_cast<int64_t>(x.size()) / block->hidden();
  EXPECT_TRUE(block->Forward(x.data(), num_tokens, &trace, pool).ok());
  BlockStatistics statistics;
  for (const Site site : kSites) {
    StatisticsOf(site, &statistics) =
        StatisticsOfRows(trace.site_input(site), ConsumersOf(site, weights).front()->k);
  }
  return statistics;
}

inline SiteSchemes SchemesOf(const WeightScheme& scheme) {
  return {scheme, scheme, scheme, scheme};
}

}  // namespace nibble::quantize::testing
