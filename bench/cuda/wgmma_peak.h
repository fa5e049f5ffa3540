// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// LaunchInt8Peak() and LaunchBf16Peak() of sm_90a.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/status.h"

namespace nibble::bench {

absl::StatusOr<double> LaunchWgmmaInt8Peak(int rounds, uint32_t* sink, int num_sms,
                                           cudaStream_t stream);
absl::StatusOr<double> LaunchWgmmaBf16Peak(int rounds, uint32_t* sink, int num_sms,
                                           cudaStream_t stream);

}  // namespace nibble::bench
