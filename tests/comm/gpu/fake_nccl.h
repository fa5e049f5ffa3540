// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What tests tell the library that stands in for NCCL, and what it tells them.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstddef>

#include "comm/gpu/nccl_library.h"

namespace nibble::comm {

struct FakeNccl {
  int version = 22809;
  NcclResult init_result = NcclResult::kSuccess;        // of what goes on in the background
  int polls_in_progress = 3;                            // until a call is done
  std::atomic<NcclResult> async{NcclResult::kSuccess};  // what later polls say
  std::atomic<int> num_polls{0};
  std::atomic<int> num_aborted{0};
  std::atomic<int> num_destroyed{0};
  // Copies from and to the device that are done when they return.
  void (*read)(void* host, const void* device, size_t bytes, cudaStream_t stream) = nullptr;
  void (*write)(void* device, const void* host, size_t bytes, cudaStream_t stream) = nullptr;
};

}  // namespace nibble::comm

// Exported by the library.
extern "C" nibble::comm::FakeNccl* FakeNcclControl();
