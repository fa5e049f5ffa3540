// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Rotary position embedding, rotate-half layout (Hugging Face): component i pairs with i +
// rotary_dim / 2.
#pragma once

#include <cstdint>
#include <vector>

#include "base/cpu_features.h"
#include "base/thread_pool.h"

namespace nibble::kernels {

// How the frequencies of a model are made from config.json's rope_theta and rope_scaling.
struct RopeConfig {
  enum class Scaling { kNone, kLinear, kLlama3 };
  int64_t rotary_dim = 0;  // even; head_dim for all models so far
  double theta = 10000.0;
  Scaling scaling = Scaling::kNone;
  double factor = 1.0;
  // kLlama3 (as transformers' _compute_llama3_parameters)
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  int64_t original_max_position = 8192;
};

// cos and sin for positions [0, max_positions), float: [max_positions, rotary_dim / 2] each.
struct RopeTable {
  int64_t rotary_dim = 0;
  int64_t max_positions = 0;
  std::vector<float> cos;
  std::vector<float> sin;
};

// Inverse frequencies, [rotary_dim / 2].
std::vector<double> InverseFrequencies(const RopeConfig& config);
RopeTable MakeRopeTable(const RopeConfig& config, int64_t max_positions, ThreadPool* pool);

struct RopeArgs {
  int64_t num_tokens = 0;
  const int32_t* positions = nullptr;  // [num_tokens], each in [0, table.max_positions)
  float* x =
      nullptr;  // [num_tokens, x_stride]: num_heads heads of head_dim from column 0, in place
  int64_t x_stride = 0;
  int64_t num_heads = 0;
  int64_t head_dim = 0;
};

void ApplyRope(const RopeTable& table, const RopeArgs& args, Isa isa, ThreadPool* pool);

}  // namespace nibble::kernels
