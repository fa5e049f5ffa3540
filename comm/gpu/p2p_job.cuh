// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// From plans to launches, for kernels with any epilogue.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/cuda/launch.h"
#include "comm/codec/cuda/device_rows.h"
#include "comm/codec/cuda/dispatch_bits.h"
#include "comm/gpu/all_reduce_kernel.cuh"
#include "comm/gpu/p2p_plan.h"

namespace nibble::comm {

inline P2pJob MakeP2pJob(const P2pPlan& plan, const CodecDesc& codec, const cuda::Rows& rows,
                         int64_t part) {
  const int64_t first_unit = part * plan.part_units;
  const int64_t first_group = first_unit * plan.unit_groups;
  const int64_t num_groups =
      std::min(plan.part_units * plan.unit_groups, plan.num_groups - first_group);
  return {
      .layout = LayoutOf(codec, plan.slot_groups),
      .rows = rows,
      .first_group = static_cast<uint32_t>(first_group),
      .num_groups = static_cast<uint32_t>(num_groups),
      .unit_groups = static_cast<uint32_t>(plan.unit_groups),
      .num_units = static_cast<uint32_t>((num_groups + plan.unit_groups - 1) / plan.unit_groups),
      .slot_bytes = plan.slot_bytes};
}

// launch(job, grid) for each part: grid blocks, on all ranks the same.
template <typename LaunchPart>
absl::Status ForP2pParts(const P2pPlan& plan, const CodecDesc& codec, const cuda::DeviceRows& rows,
                         const LaunchPart& launch) {
  NIBBLE_RETURN_IF_ERROR(cuda::CheckGroups(codec, 0, plan.num_groups));
  NIBBLE_ASSIGN_OR_RETURN(const cuda::Rows view, cuda::RowsOf(codec, rows));
  for (int64_t part = 0; part < plan.num_parts(); ++part) {
    const P2pJob job = MakeP2pJob(plan, codec, view, part);
    const unsigned grid = std::min(job.num_units, static_cast<unsigned>(plan.num_blocks));
    NIBBLE_RETURN_IF_ERROR(launch(job, grid));
  }
  return absl::OkStatus();
}

}  // namespace nibble::comm
