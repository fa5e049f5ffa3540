// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Operations on rows that only models need.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/status.h"
#include "kernels/device/device_matrix.h"

namespace nibble::kernels::cuda {

// to[row, c] = from[row, order[c]]: the input channels of a weight that was rounded in an order of
// its own (act-order). Scales and sums of rows do not depend on it.
// INTERNAL where this build has no code for the current device.
absl::Status CheckKernelImage();

struct ReorderColumnsArgs {
  int64_t num_rows = 0;
  int64_t k = 0;
  const int8_t* from = nullptr;  // [num_rows, stride]
  int64_t stride = 0;
  const int32_t* order = nullptr;  // [k], each in [0, k)
  int8_t* to = nullptr;            // [num_rows, stride]
};
absl::Status ReorderColumns(const ReorderColumnsArgs& args, cudaStream_t stream);

// y[row] *= sigmoid(gate . x[row]): a shared expert's own gate.
struct GateRowsArgs {
  int64_t num_rows = 0;
  int64_t hidden = 0;
  const float* x = nullptr;  // [num_rows, x_stride]
  int64_t x_stride = 0;
  const float* gate = nullptr;  // [hidden]
  DeviceMatrix y;               // [num_rows, hidden], in place
};
absl::Status GateRows(const GateRowsArgs& args, cudaStream_t stream);

}  // namespace nibble::kernels::cuda
