// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The emulator's form of the header of the same name.
#pragma once

#include <cuda_runtime.h>

#include "tests/simt/simt.h"

namespace nibble::gpu {

template <typename T>
T* SharedAs() {
  if (sizeof(T) > simt::SharedBytes()) simt::Fail("less shared memory than SharedAs() needs");
  return reinterpret_cast<T*>(simt::SharedMemory());
}

}  // namespace nibble::gpu
