// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the functions of runtime.h share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "tests/simt/runtime.h"

namespace simt {

struct StreamState;

struct Runtime {
  std::recursive_mutex mutex;  // guards all
  DeviceModel device;
  std::set<int> contexts;
  std::map<uintptr_t, size_t> device_memory;
  std::map<uintptr_t, size_t> pinned_memory;
  std::vector<std::shared_ptr<StreamState>> streams;
  size_t bytes_in_use = 0;
  cudaError_t fail_next = cudaSuccess;
  cudaError_t sticky = cudaSuccess;
};
Runtime& Global();

// What nothing can be done on a device without: of the calling thread's current one. An error where
// there is no device.
cudaError_t MakeContext();

// The error that every call gives from now on, if there is one.
cudaError_t Sticky();
// That, or the one of FailNext().
cudaError_t TakeFailure();
// For calls that must not be made while this host thread captures: they spoil the capture.
cudaError_t RefuseInCapture();

bool IsDevice(const void* data, size_t bytes);
bool IsPinned(const void* data, size_t bytes);
bool IsCapturing(cudaStream_t stream);

// All that the stream, or every stream, was given so far.
cudaError_t Drain(cudaStream_t stream);
cudaError_t DrainAll();

}  // namespace simt
