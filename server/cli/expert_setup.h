// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// From the options of experts and stages to what ranks take: each one's place, and which experts
// are where.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/cpu_features.h"
#include "base/status.h"
#include "engine/model/model.h"
#include "engine/model/model_config.h"
#include "engine/model/shard.h"
#include "engine/moe/expert_layout.h"
#include "server/config.h"

namespace nibble::cli {

// What all ranks have alike.
struct ExpertSetup {
  int expert_size = 1;  // RankPlace's
  // Of --expert-load; null: number e of E on part e * expert_size / E.
  std::shared_ptr<const engine::ExpertLayout> layout;
  std::string load_fingerprint;  // of the file that decided the layout; empty: none

  int64_t num_slots() const { return layout == nullptr ? 0 : layout->num_slots; }  // 0: no copies
};

// Reads --expert-load. INVALID_ARGUMENT naming options and values: experts of a dense model, more
// parts than experts, more stages than layers, slots that do not divide, slices that cut groups of
// weights, and what else keeps the model from being split so (engine::CheckSplit). Says in the log
// when the number of parts was chosen. `load` has quantization; its place is not read.
absl::StatusOr<ExpertSetup> SetUpExperts(const server::ParallelOptions& options,
                                         const engine::ModelConfig& model,
                                         const engine::LoadOptions& load);

// Of rank number `world_rank` of all stages.
engine::RankPlace PlaceOf(const server::ParallelOptions& options, int expert_size, int world_rank);

// What of experts all ranks must have alike, to follow OptionsFingerprint(): ",
// --expert-parallel-size=4, ...". The instruction set belongs to it, for each rank decides where
// tokens go by bits of its own.
std::string ExpertsFingerprint(const server::ExpertOptions& options, const ExpertSetup& setup,
                               Isa isa);

// "2 stages x 2 ranks, experts whole on each rank": for the banner.
std::string DescribeRanks(const server::ParallelOptions& options, const ExpertSetup& experts,
                          bool has_experts);

}  // namespace nibble::cli
