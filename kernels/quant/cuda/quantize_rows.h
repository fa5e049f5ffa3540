// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Activations to int8 on a device, bit-equal to kernels/quant/quantize_rows.h (scales, codes, sums,
// and rows with a NaN or an infinity).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/status.h"
#include "kernels/device/device_matrix.h"

namespace nibble::kernels::cuda {

// x [num_rows, k] to the forms in `out` (a change of float type, or int8). `valid_rows` in device
// memory, or null: rows from *valid_rows on are left alone.
absl::Status QuantizeRows(const DeviceMatrix& x, int64_t num_rows, int64_t k, const RowOutput& out,
                          const int32_t* valid_rows, cudaStream_t stream);

}  // namespace nibble::kernels::cuda
