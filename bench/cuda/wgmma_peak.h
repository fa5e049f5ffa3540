// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// LaunchInt8Peak() of sm_90a.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/status.h"

namespace nibble::bench {

absl::StatusOr<double> LaunchWgmmaPeak(int rounds, uint32_t* sink, int num_sms,
                                       cudaStream_t stream);

}  // namespace nibble::bench
