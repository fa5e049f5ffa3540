// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the ranks of a model sum, and what compressing it loses: the all-reduces of a model over a
// text, after attention and after the feed-forward network of every layer. The model computes with
// exact sums throughout; each codec is tried on the ranks' parts beside it, so that losses do not
// pile up from layer to layer (perplexity tells what they do together).
#pragma once

#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include "nlohmann/json_fwd.hpp"

#include "base/cpu_features.h"
#include "base/status.h"
#include "engine/exec/perplexity.h"

namespace nibble::bench {

struct ActivationBenchOptions {
  int64_t tokens = 2048;  // of the text
  int64_t context = 512;  // the text is cut into windows of this
  std::vector<int64_t> bits = {8, 6, 5, 4, 3, 2};
  std::vector<int64_t> group_sizes = {32, 64, 128};

  void Validate(std::vector<std::string>* violations) const;
};

struct ActivationSubject {
  // Two or more, by rank; sums that are not exact in float32 would be measured as if they were.
  std::span<const engine::PerplexityRank> ranks;
  std::span<const int32_t> ids;
  Isa isa = Isa::kRef;  // of the codecs
  std::FILE* table = nullptr;
};

// Every codec plain, with spikes, with rotation, and with both. Decibels are of the sums' power
// over that of the error against the float32 sum, of an all-reduce among ranks that are a host
// each.
absl::StatusOr<nlohmann::ordered_json> RunActivationBench(const ActivationBenchOptions& options,
                                                          const ActivationSubject& subject);

}  // namespace nibble::bench
