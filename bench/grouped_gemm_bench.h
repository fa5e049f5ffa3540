// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The grouped GEMM of mixture-of-experts layers beside a dense GEMM of the same work, in one run.
//
// A row of the results is one shape of experts, one weight format and one number of tokens:
//   experts_hit, rows_per_expert  of routing that is as even as can be
//   grouped_us, dense_us          medians, both measured in turn. Dense is one weight of top_k * n
//                                 rows of k values times rows_per_expert rows (rounded up): with
//                                 one token the very bytes and products of the experts hit
//   grouped_gb_per_s, grouped_top_per_s, dense_gb_per_s, dense_top_per_s
//   share_of_dense                products per second, grouped over dense
//   random_hit, random_us         experts hit and time where every token goes to random experts
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

// One GEMM of a layer's experts.
struct ExpertShape {
  std::string name;
  int64_t n = 0;
  int64_t k = 0;
  int64_t num_experts = 0;
  int64_t top_k = 0;  // experts of a token
};
// Up and down of Mixtral-8x7B and Qwen3-30B-A3B.
std::vector<ExpertShape> ModelExpertShapes();

struct GroupedGemmBenchOptions {
  std::vector<ExpertShape> shapes = ModelExpertShapes();
  std::vector<std::string> formats = {"w4a8-folded"};  // names of WeightKinds()
  std::vector<int64_t> tokens = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512};
  std::string filter;    // of the shape's name
  double seconds = 0.3;  // of each row, and at least 5 runs of everything
  // Of layers that are used in turn, and of dense weights: more than any cache holds.
  int64_t rotated_bytes = int64_t{256} << 20;

  void Validate(std::vector<std::string>* violations) const;
};

// INVALID_ARGUMENT when no shape matches the filter, or for a format that is none.
absl::StatusOr<nlohmann::ordered_json> RunGroupedGemmBench(const GroupedGemmBenchOptions& options,
                                                           Isa isa, ThreadPool* pool,
                                                           std::FILE* table);

}  // namespace nibble::bench
