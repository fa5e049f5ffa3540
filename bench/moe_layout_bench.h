// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the ranks of a mixture-of-experts layer exchange, in two layouts of the same layer: PPMoE
// (arXiv:2304.11414: two all-reduces, attention's and the experts') and token-sharded experts
// (all_to_all_experts.h). Experts cost nothing here: they scale their rows, so that both layouts'
// results can be compared. `bytes_sent` of an all-to-all row: what rank 0 sends in a run.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "nlohmann/json_fwd.hpp"

#include "base/status.h"
#include "bench/allreduce_bench.h"

namespace nibble::bench {

struct MoeLayoutBenchOptions {
  // Who the ranks are and how they meet; row_size is the hidden size. Sizes and codecs are not
  // used.
  AllReduceBenchOptions group;
  std::vector<int64_t> tokens = {16, 128, 512, 2048};
  int64_t num_experts = 8;
  int64_t num_experts_per_tok = 2;
  std::vector<std::string> codecs = {"bf16", "int8", "int4"};

  void Validate(std::vector<std::string>* violations) const;
};

// As RunAllReduceBench.
absl::StatusOr<nlohmann::ordered_json> RunMoeLayoutBench(const MoeLayoutBenchOptions& options,
                                                         std::FILE* table);

}  // namespace nibble::bench
