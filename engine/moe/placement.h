// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Expert placement from recorded loads: replicates experts that many tokens choose and packs the
// copies so that the ranks have equal loads. The algorithm of DeepSeek's Expert Parallelism Load
// Balancer (EPLB): greedy replication (each further copy to the expert with the largest load per
// copy), then greedy packing (heaviest copy first, to the lightest rank with a free slot);
// hierarchical when groups of experts divide among nodes.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "engine/moe/expert_layout.h"
#include "engine/moe/expert_load.h"

namespace nibble::engine {

struct PlacementShape {
  int64_t num_slots = 0;   // experts and replicas; a multiple of num_ranks, at most kMaxSlots
  int64_t num_groups = 1;  // of experts, as routing by groups has them; divides the experts
  int64_t num_nodes = 1;   // divides num_ranks. Groups stay on one node where it divides num_groups
  int64_t num_ranks = 1;   // expert ranks
};

// A layout for `load`, by expert, layer by layer. No rank has two copies of one expert, whatever
// the loads are: num_slots is at most num_experts * num_ranks (of a node, where groups stay on
// one). Equal loads: the expert with fewer copies, then with the lower number; the rank with the
// lower number. INVALID_ARGUMENT naming value and limit for a shape that does not fit.
absl::StatusOr<ExpertLayout> PlaceExperts(const ExpertLoad& load, const PlacementShape& shape);

// mean / max of the ranks' loads in each layer, copies sharing an expert's load equally: 1 is
// ideal. 1 for a layer without tokens. [num_layers]. REQUIRES a layout that CheckExpertLayout takes
// for the load's layers and experts and for num_ranks.
std::vector<double> Balancedness(const ExpertLoad& load, const ExpertLayout& layout,
                                 int64_t num_ranks);

}  // namespace nibble::engine
