// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A layer with experts as a decoding batch runs it (engine/model/moe_layer.h, one rank) beside a
// dense feed-forward network of the same active parameters, measured in turn in one run.
//
// A row of the results is one shape and one number of tokens:
//   moe_us, dense_us    medians of one layer: router to weighted sum; gate and up, SiLU, down. Both
//                       read activations that are quantized already, as the norm leaves them
//   moe_over_dense      of the medians; best_moe_over_dense: of the best runs
//   experts_hit         different experts of a run, mean; uniform_hit: expected of an even router
//   gb_per_s            bytes of the experts hit and of the router, per second; share_of_read: of
//                       the reading peak measured right before. dense_...: the same of dense
//   share_of_roofline   the longer of reading those and of the arithmetic, over moe_us
//   tokens_per_s        of this layer alone
//   over_predicted      moe_us over what is predicted: reading the experts hit at the rate of the
//                       shape's first row, or computing as long as dense does, the longer of both
//   router_us, route_us, permute_us, combine_us   parts of moe_us, measured apart
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "nlohmann/json_fwd.hpp"

#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "bench/moe_rig.h"

namespace nibble::bench {

// mixtral-8x7b, qwen3-30b-a3b, stories-mixtral.
const std::vector<MoeShape>& MoeShapes();

struct MoeBenchOptions {
  std::vector<std::string> shapes = {"mixtral-8x7b", "qwen3-30b-a3b", "stories-mixtral"};
  std::string weights = "w4a8-folded";
  std::vector<int64_t> tokens = {1, 2, 4, 8, 16, 32, 64};  // of a step: sequences that decode
  // Of layers that run in turn: more than any cache holds.
  int64_t rotated_bytes = int64_t{512} << 20;
  double seconds = 0.5;  // of each row, and at least 5 runs

  void Validate(std::vector<std::string>* violations) const;
};

absl::StatusOr<nlohmann::ordered_json> RunMoeBench(const MoeBenchOptions& options, Isa isa,
                                                   ThreadPool* pool, std::FILE* table);

}  // namespace nibble::bench
