// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// cp.async. Called by the wrappers of include/; the contract is in base/cuda/async_copy.cuh.
//
// Eager launches copy at once; lazy ones when a group is waited for, from the source as it is then.
#pragma once

#include <cstdint>

namespace simt {

// `bytes`: 4 or 16, as both addresses are aligned.
void CopyAsync(void* shared, const void* global, int bytes, bool fill_zero);
void CopyAsyncCommit();
void CopyAsyncWait(int num_pending);

}  // namespace simt
