// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The emulator's form of the header of the same name.
#pragma once

#include <cuda_runtime.h>

#include "base/cuda/shared_memory.cuh"
#include "tests/simt/copies.h"

namespace nibble::gpu {

inline void CopyAsync16(void* shared, const void* global, bool fill_zero = false) {
  simt::CopyAsync(shared, global, 16, fill_zero);
}
inline void CopyAsync4(void* shared, const void* global, bool fill_zero = false) {
  simt::CopyAsync(shared, global, 4, fill_zero);
}
inline void CopyAsyncCommit() { simt::CopyAsyncCommit(); }
template <int kPending>
void CopyAsyncWait() {
  static_assert(kPending >= 0);
  simt::CopyAsyncWait(kPending);
}

}  // namespace nibble::gpu
