// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Moving scale between activations and weights. At each of the four sites of a block (the inputs of
// q/k/v, of o, of gate/up and of down) channel j may be divided by s[j] where it is produced and
// its weight columns multiplied by s[j] where it is consumed:
//
//   site      consumers  producer divided by s
//   kQkv      q k v      input_norm
//   kO        o          rows and bias of v; query heads that share a v head share its s
//   kGateUp   gate up    post_attention_norm
//   kDown     down       rows and bias of up
//
// The block computes the same function; what changes is how its weights and activations round. Of a
// block with experts kGateUp is refused: the router and all experts read post_attention_norm.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "quantize/methods/calibration_data.h"

namespace nibble::quantize {

enum class Site { kQkv, kO, kGateUp, kDown };
inline constexpr std::array<Site, 4> kSites = {Site::kQkv, Site::kO, Site::kGateUp, Site::kDown};

std::string_view ToString(Site site);  // "qkv", "o", "gate_up", "down"

// Of kSites, in their order: one scale per channel means a group of another size at each.
using SiteSchemes = std::array<WeightScheme, 4>;

struct AttentionShape {
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;  // divides num_heads
  int64_t head_dim = 0;
};

// What methods that choose scales are told of a block.
struct EqualizationContext {
  AttentionShape shape;
  SiteSchemes schemes;
  // Of kSites, in their order: those that may be changed. Statistics of others are not looked at.
  std::array<bool, 4> sites = {true, true, true, true};
  Isa isa = Isa::kRef;
  ThreadPool* pool = nullptr;
};

// Sizes of every matrix, norm and bias of the block against each other and `shape`.
// INVALID_ARGUMENT naming the first that does not fit. Of a block with experts: those of the expert
// in place of its network, if there is one.
absl::Status ValidateBlock(const AttentionShape& shape, const BlockWeights& block);

InputStatistics& StatisticsOf(Site site, BlockStatistics* statistics);
const InputStatistics& StatisticsOf(Site site, const BlockStatistics& statistics);
std::vector<Matrix*> ConsumersOf(Site site, BlockWeights* block);
std::vector<const Matrix*> ConsumersOf(Site site, const BlockWeights& block);

// Sizes of `statistics` against its k; finite values. Hessian and samples may be empty.
absl::Status ValidateStatistics(const InputStatistics& statistics);

// The nearest scale that ApplyScale takes: values that are no positive number become 1, values
// beyond 2^-14..2^14 the nearest of these, query heads of a group get their geometric mean, and
// where the producer is a norm s is moved by under 0.4 % so that norm / s has 8 significant bits: a
// checkpoint that stores norms in bfloat16 then loses nothing. REQUIRES: ValidateBlock;
// scale->size() is the site's number of channels.
void FitScale(Site site, const AttentionShape& shape, const BlockWeights& block,
              std::vector<float>* scale);

// INVALID_ARGUMENT, changing nothing, for a scale of the wrong size, one that is not positive and
// finite (naming the channel), or query heads of a group that differ at kO.
absl::Status ApplyScale(Site site, const AttentionShape& shape, const std::vector<float>& scale,
                        BlockWeights* block);
// What calibration would have seen after ApplyScale: x / s.
absl::Status ScaleStatistics(const std::vector<float>& scale, InputStatistics* statistics);

}  // namespace nibble::quantize
