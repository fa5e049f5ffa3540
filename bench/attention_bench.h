// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Paged attention, decode and prefill, against the machine's own limits, measured in the same run.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "nlohmann/json_fwd.hpp"

#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"

namespace nibble::bench {

struct AttentionBenchOptions {
  std::vector<std::string> dtypes = {"bfloat16", "int8"};  // of the cache; also float32, float16
  std::vector<int64_t> head_dims = {64, 128};              // each 1..1024
  int64_t num_heads = 32;                                  // a multiple of num_kv_heads
  int64_t num_kv_heads = 8;
  std::vector<int64_t> sequences = {1, 8, 32};           // decoding together, one new token each
  std::vector<int64_t> contexts = {4096, 16384, 32768};  // tokens in the cache at each of those
  std::vector<int64_t> prefills = {512, 2048};           // new tokens of one sequence from empty
  int64_t block_size = 16;
  // Blocks of a sequence lie in random order instead of one after the other, as they do in a pool
  // that was empty.
  bool scattered = false;
  // Cases of which one cache of keys and values would be larger are left out, and say so. Small
  // ones are rotated through several.
  int64_t max_cache_bytes = int64_t{2} << 30;
  double seconds = 0.15;  // of each case, and at least 3 runs

  void Validate(std::vector<std::string>* violations) const;
};

// Every row has its own peaks, measured right before it.
absl::StatusOr<nlohmann::ordered_json> RunAttentionBench(const AttentionBenchOptions& options,
                                                         Isa isa, ThreadPool* pool,
                                                         std::FILE* table);

}  // namespace nibble::bench
