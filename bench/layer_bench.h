// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One decoder layer, op by op, in the order and with the calls of engine/model/decoder.cc.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "nlohmann/json_fwd.hpp"

#include "base/cpu_features.h"
#include "base/dtype.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "engine/model/model_config.h"

namespace nibble::bench {

struct LayerShape {
  int64_t hidden_size = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t intermediate_size = 0;
};

// INVALID_ARGUMENT, naming the shapes there are.
absl::StatusOr<LayerShape> FindLayerShape(const std::string& name);
LayerShape LayerShapeOf(const engine::ModelConfig& config);

struct LayerBenchOptions {
  std::string shape = "llama-3.2-1b";
  std::string model;  // directory whose config.json has the shape; empty: `shape`
  std::string weights = "w4a8-folded";
  std::string kv_cache_dtype = "bfloat16";    // float32, bfloat16, float16, int8
  std::vector<int64_t> batches = {1, 8, 32};  // sequences that decode one token each
  std::vector<int64_t> contexts = {512};      // tokens of each, the new one included
  std::vector<int64_t> prompts = {512};       // tokens of a sequence computed in one step
  // Of copies of the layer that run in turn: more than any cache holds.
  int64_t rotated_bytes = int64_t{256} << 20;
  double seconds = 0.5;  // of each case, and at least 3 passes

  void Validate(std::vector<std::string>* violations) const;
};

// One row for each op of each case and one for the whole layer. A pass runs copies of the layer
// past the last-level cache one after the other. The roofline of a product or of attention is the
// longer of reading its weights (keys and values) and of its arithmetic.
absl::StatusOr<nlohmann::ordered_json> RunLayerBench(const LayerBenchOptions& options, Isa isa,
                                                     ThreadPool* pool, std::FILE* table);

}  // namespace nibble::bench
