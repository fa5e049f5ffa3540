// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// cp.async. Called by the wrappers of include/; the contract is in base/cuda/async_copy.cuh.
//
// Eager launches copy at once; lazy ones when a group is waited for, from the source as it is then.
#pragma once

#include <cstdint>

namespace simt {

void CopyAsync16(void* shared, const void* global, bool fill_zero);
void CopyAsyncCommit();
void CopyAsyncWait(int num_pending);

}  // namespace simt
