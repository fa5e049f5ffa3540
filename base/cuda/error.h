// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// From CUDA's error codes to Status.
#pragma once

#include <cuda_runtime.h>

#include "base/status.h"

namespace nibble::gpu {

// OK for cudaSuccess. UNAVAILABLE when there is no driver or no device, RESOURCE_EXHAUSTED when
// device memory ran out, else INTERNAL; `what` says what was tried. Clears an error that the
// runtime keeps for the next call, unless it is sticky.
absl::Status ToStatus(cudaError_t error, const char* what);

// Whether the context is lost: every later call of this process fails, and the rank has to be
// started anew (a kernel's illegal access, a trap, a hardware fault, MPS's server gone).
bool IsSticky(cudaError_t error);

}  // namespace nibble::gpu

// NIBBLE_RETURN_IF_CUDA_ERROR(cudaMemsetAsync(...));
#define NIBBLE_RETURN_IF_CUDA_ERROR(call) \
  NIBBLE_RETURN_IF_ERROR(::nibble::gpu::ToStatus((call), #call))
