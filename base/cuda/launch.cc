// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/cuda/launch.h"

#include <map>
#include <mutex>
#include <tuple>
#include <utility>

namespace nibble::gpu {
namespace {

absl::StatusOr<int> CurrentDevice() {
  int device = 0;
  NIBBLE_RETURN_IF_CUDA_ERROR(cudaGetDevice(&device));
  return device;
}

}  // namespace

absl::Status OptInToShared(const void* kernel, size_t bytes) {
  static std::mutex mutex;
  static auto* const limits = new std::map<std::pair<int, const void*>, size_t>();
  NIBBLE_ASSIGN_OR_RETURN(const int device, CurrentDevice());
  const std::lock_guard lock(mutex);
  size_t& limit = (*limits)[{device, kernel}];
  if (bytes <= limit) return absl::OkStatus();
  NIBBLE_RETURN_IF_CUDA_ERROR(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  limit = bytes;
  return absl::OkStatus();
}

absl::StatusOr<int64_t> ResidentBlocks(const void* kernel, int block_threads, size_t shared_bytes) {
  static std::mutex mutex;
  static auto* const known = new std::map<std::tuple<int, const void*, int, size_t>, int64_t>();
  NIBBLE_ASSIGN_OR_RETURN(const int device, CurrentDevice());
  const std::lock_guard lock(mutex);
  int64_t& blocks = (*known)[{device, kernel, block_threads, shared_bytes}];
  if (blocks > 0) return blocks;
  int per_sm = 0;
  int num_sms = 0;
  NIBBLE_RETURN_IF_CUDA_ERROR(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, kernel, block_threads, shared_bytes));
  NIBBLE_RETURN_IF_CUDA_ERROR(
      cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device));
  if (per_sm < 1) {
    return Internal("no block of {} threads and {} bytes of shared memory fits a multiprocessor",
                    block_threads, shared_bytes);
  }
  blocks = int64_t{per_sm} * num_sms;
  return blocks;
}

}  // namespace nibble::gpu
