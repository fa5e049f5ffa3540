// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the row ops on devices have in common on the host: the checks of their matrices, and how
// many threads have a row.
#pragma once

#include <cstdint>
#include <type_traits>

#include "base/status.h"
#include "kernels/device/device_matrix.h"

namespace nibble::kernels::cuda {

// INVALID_ARGUMENT, naming `name`, value and limit: rows beyond a launch (2^31 - 1), a type that is
// no activation's, a stride below `columns`, data or rows that are not aligned to 16 bytes.
absl::Status CheckMatrix(const char* name, const DeviceMatrix& x, int64_t num_rows,
                         int64_t columns);
// The same of what is written; one output at least.
absl::Status CheckOutput(const RowOutput& out, int64_t num_rows, int64_t columns);
// For messages.
fmt::string_view TypeName(DType dtype);
// A multiple of 8, 8..limit.
absl::Status CheckColumns(const char* name, int64_t columns, int64_t limit);
// That num_rows * per_row blocks are a grid.
absl::Status CheckGrid(int64_t num_rows, int64_t per_row);

// The block of one row: `threads`, a multiple of 32, each of which holds `held` chunks of 8
// elements in registers; 0: the row is too long for that. A function of `columns` alone, so that
// sums do not depend on the batch.
struct RowPlan {
  int held = 1;  // 0, 1, 2, 4 or 8
  unsigned threads = 32;
};
RowPlan PlanRow(int64_t columns);

// Calls launch(std::integral_constant<int, held>).
template <typename Launch>
auto WithHeld(int held, const Launch& launch) {
  switch (held) {
    case 1:
      return launch(std::integral_constant<int, 1>());
    case 2:
      return launch(std::integral_constant<int, 2>());
    case 4:
      return launch(std::integral_constant<int, 4>());
    case 8:
      return launch(std::integral_constant<int, 8>());
    default:
      return launch(std::integral_constant<int, 0>());
  }
}

}  // namespace nibble::kernels::cuda
