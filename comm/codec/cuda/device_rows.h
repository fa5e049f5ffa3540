// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Checked sizes: what launchers do before they launch. Included from .cu only, as Rows is device
// code's.
#pragma once

#include <cstdint>
#include <limits>

#include "base/status.h"
#include "comm/codec/cuda/codec.h"
#include "comm/codec/cuda/codec_values.cuh"

namespace nibble::comm::cuda {

inline absl::Status CheckGroups(const CodecDesc& desc, int64_t first, int64_t count) {
  NIBBLE_RETURN_IF_ERROR(Validate(desc));
  if (first < 0 || count < 0 || first > kMaxGroups || count > kMaxGroups - first) {
    return InvalidArgument("groups {} to {} + {}, the limits are 0 and {}", first, first, count,
                           kMaxGroups);
  }
  return absl::OkStatus();
}

inline absl::StatusOr<Rows> RowsOf(const CodecDesc& desc, const DeviceRows& rows) {
  constexpr int64_t kMaxRowSize = std::numeric_limits<int>::max() - 128;
  if (rows.dtype != DType::kF32 && rows.dtype != DType::kBf16) {
    return InvalidArgument("rows of {}, want float32 or bfloat16", ToString(rows.dtype));
  }
  if (rows.groups.group_size != desc.group_size) {
    return InvalidArgument("rows have groups of {} values, the codec of {}", rows.groups.group_size,
                           desc.group_size);
  }
  if (rows.groups.row_size < 1 || rows.groups.row_size > kMaxRowSize) {
    return InvalidArgument("rows of {} values, the limits are 1 and {}", rows.groups.row_size,
                           kMaxRowSize);
  }
  return Rows{.data = rows.data,
              .is_bf16 = rows.dtype == DType::kBf16,
              .row_size = static_cast<int>(rows.groups.row_size),
              .group_size = desc.group_size,
              .groups_per_row = static_cast<int>(rows.groups.groups_per_row())};
}

}  // namespace nibble::comm::cuda
