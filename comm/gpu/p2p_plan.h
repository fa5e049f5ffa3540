// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// How a message is divided among blocks and launches. Pure, and the same on all ranks, as blocks of
// equal index work on the same groups.
//
// A message's groups are cut into units, one after the other; block b of B has units b, b + B, ...
// In a two-shot all-reduce rank r owns a stripe of each unit (StripeOf, as on CPUs).
#pragma once

#include <cstdint>

#include "base/status.h"
#include "comm/all_reduce.h"

namespace nibble::comm {

struct P2pLimits {
  int num_ranks = 1;
  int max_blocks = 1;  // that all devices run at a time; at most kMaxP2pBlocks
  int64_t region_bytes = 0;
};

struct P2pMessage {
  CodecDesc codec;
  RowGroups groups;
  int64_t num_rows = 0;
  Algorithm algorithm = Algorithm::kTwoShot;
  bool whole_rows = false;  // a unit is one row: a block can go on with it
};

struct P2pPlan {
  bool two_shot = true;
  int64_t num_groups = 0;
  int64_t unit_groups = 1;
  int64_t num_units = 0;
  int64_t slot_groups = 1;  // of a unit that one rank sends to one
  int64_t slot_bytes = 0;
  int64_t part_units = 1;  // of a launch
  int num_blocks = 0;      // of a launch with part_units; those with fewer have fewer
  int num_threads = 32;

  int64_t num_parts() const { return (num_units + part_units - 1) / part_units; }
};

// Regions of this size hold any codec's largest unit that is not a whole row: plans then exist for
// all messages.
int64_t MinRegionBytes(int num_ranks);

// Of a communicator whose messages have so many values at most; regions lie at multiples of 128.
// What is larger takes several launches: regions stay small, and a launch is little beside them.
int64_t P2pRegionBytes(int num_ranks, int64_t max_values);

// INVALID_ARGUMENT where the region is too small for one unit: with whole rows alone, when it has
// MinRegionBytes. A message that one-shot would need several launches for goes two-shot, which has
// the same bits.
absl::StatusOr<P2pPlan> PlanMessage(const P2pMessage& message, const P2pLimits& limits);

// The codec that a message takes: what the host's policy says, but that a sum that may not be
// rounded, of bf16 values, needs no more than bf16 to travel, and has no groups to be filled up.
CodecDesc DeviceCodec(const CodecDesc& codec, bool exact, bool rows_are_bf16);

}  // namespace nibble::comm
