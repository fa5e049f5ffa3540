// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Copies that are under way while threads go on: cp.async, and bulk and tensor copies that
// complete a barrier. Called by the wrappers of include/; the contracts are in the product's
// headers of the same names.
//
// Eager launches copy at once; lazy ones at the last moment, source and destination both: a copy of
// a group when the group is waited for, one of a barrier when nothing else is missing of the phase
// and a thread waits for it.
#pragma once

#include <cstdint>

namespace simt {

void CopyAsync16(void* shared, const void* global, bool fill_zero);
void CopyAsyncCommit();
void CopyAsyncWait(int num_pending);

}  // namespace simt
