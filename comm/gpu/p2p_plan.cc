// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/gpu/p2p_plan.h"

#include <algorithm>

#include "comm/gpu/p2p_link.h"

namespace nibble::comm {
namespace {

constexpr int64_t kWarp = 32;
constexpr int64_t kMaxThreads = 256;
constexpr int64_t kValuesOfThread = 32;
constexpr int64_t kMaxRegionValues = int64_t{4} << 20;

int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

int64_t MinRegionBytes(int num_ranks) {
  // A stripe of 256 threads' values for each rank; float32 is the widest.
  return num_ranks *
         EncodedBytes({.bits = 32, .group_size = 32}, kMaxThreads * kValuesOfThread / 32 + 1);
}

int64_t P2pRegionBytes(int num_ranks, int64_t max_values) {
  constexpr int64_t kAlign = alignof(P2pFlags);
  const int64_t values = std::min(max_values, kMaxRegionValues);
  const int64_t bytes = MinRegionBytes(num_ranks) + values * int64_t{sizeof(float)};
  return DivideUp(bytes, kAlign) * kAlign;
}

absl::StatusOr<P2pPlan> PlanMessage(const P2pMessage& message, const P2pLimits& limits) {
  const int64_t ranks = limits.num_ranks;
  const int64_t per_row = message.groups.groups_per_row();
  const int64_t team = message.codec.group_size / kValuesOfThread;
  P2pPlan plan;
  plan.two_shot = message.algorithm == Algorithm::kTwoShot;
  plan.num_groups = message.num_rows * per_row;
  // A warp's groups of each stripe at least, a block's at most: small messages go to many blocks.
  const int64_t stripes = plan.two_shot ? ranks : 1;
  const int64_t least = stripes * (kWarp / team);
  const int64_t most = stripes * (kMaxThreads / team);
  plan.unit_groups = message.whole_rows
                         ? std::max<int64_t>(per_row, 1)
                         : std::clamp(DivideUp(plan.num_groups, limits.max_blocks), least, most);
  plan.num_units = DivideUp(plan.num_groups, plan.unit_groups);
  plan.slot_groups = DivideUp(plan.unit_groups, stripes);
  plan.slot_bytes = EncodedBytes(message.codec, plan.slot_groups);
  plan.part_units = std::min(limits.region_bytes / (ranks * plan.slot_bytes),
                             std::max<int64_t>(plan.num_units, 1));
  if (!plan.two_shot && plan.part_units < plan.num_units) {
    P2pMessage two_shot = message;
    two_shot.algorithm = Algorithm::kTwoShot;
    return PlanMessage(two_shot, limits);
  }
  if (plan.part_units < 1) {
    return InvalidArgument("{} codes of {} groups take {} bytes, the limit is {}", ranks,
                           plan.unit_groups, ranks * plan.slot_bytes, limits.region_bytes);
  }
  plan.num_blocks = static_cast<int>(std::min<int64_t>(plan.part_units, limits.max_blocks));
  plan.num_threads = static_cast<int>(
      std::clamp(DivideUp(plan.unit_groups * team, kWarp) * kWarp, kWarp, kMaxThreads));
  return plan;
}

CodecDesc DeviceCodec(const CodecDesc& codec, bool exact, bool rows_are_bf16) {
  if (codec.is_integer() && !exact) return codec;
  // Of float32 rows, bf16 codes round; of bf16 rows, float32 codes carry zeros.
  const bool narrow = rows_are_bf16 || (!exact && codec.bits == 16);
  return {.bits = narrow ? 16 : 32, .group_size = 32};
}

}  // namespace nibble::comm
