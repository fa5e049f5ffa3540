// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/cuda/device.h"

#include <cuda_runtime.h>

#include "base/cuda/error.h"
#include "base/log.h"

namespace nibble::gpu {
namespace {

static_assert(CUDART_VERSION / 1000 == 13, "WhyNoDevice() names the driver that CUDA 13 needs");
constexpr int kLeastDriver = 580;

thread_local int g_chosen = -1;  // by this thread's guards; -1: none yet

absl::Status Choose(int index) {
  NIBBLE_RETURN_IF_CUDA_ERROR(cudaSetDevice(index));
  g_chosen = index;
  return absl::OkStatus();
}

std::string VersionName(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

}  // namespace

absl::StatusOr<std::vector<DeviceCaps>> ListDevices() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver || error == cudaErrorNoDevice) {
    (void)cudaGetLastError();
    return std::vector<DeviceCaps>{};
  }
  NIBBLE_RETURN_IF_ERROR(ToStatus(error, "cudaGetDeviceCount"));
  std::vector<DeviceCaps> devices;
  for (int i = 0; i < count; ++i) {
    NIBBLE_ASSIGN_OR_RETURN(DeviceCaps caps, GetDeviceCaps(i));
    devices.push_back(std::move(caps));
  }
  return devices;
}

absl::StatusOr<DeviceCaps> GetDeviceCaps(int index) {
  cudaDeviceProp properties{};
  NIBBLE_RETURN_IF_CUDA_ERROR(cudaGetDeviceProperties(&properties, index));
  return DeviceCaps{.index = index,
                    .name = properties.name,
                    .sm = properties.major * 10 + properties.minor,
                    .num_sms = properties.multiProcessorCount,
                    .memory_bytes = static_cast<int64_t>(properties.totalGlobalMem),
                    .l2_bytes = properties.l2CacheSize,
                    .max_shared_bytes = static_cast<int64_t>(properties.sharedMemPerBlockOptin)};
}

absl::StatusOr<std::string> DriverVersion() {
  int version = 0;
  NIBBLE_RETURN_IF_CUDA_ERROR(cudaDriverGetVersion(&version));
  if (version == 0) return Unavailable("no CUDA driver");
  return VersionName(version);
}

std::string WhyNoDevice() {
  int version = 0;
  if (cudaDriverGetVersion(&version) != cudaSuccess || version == 0) return "no CUDA driver";
  // A driver runs all programs of its major version.
  if (version / 1000 >= CUDART_VERSION / 1000) {
    return fmt::format("the driver (for CUDA {}) shows no device", VersionName(version));
  }
  return fmt::format("the driver is for CUDA {}, this program needs {}.0 (driver {} or later)",
                     VersionName(version), CUDART_VERSION / 1000, kLeastDriver);
}

absl::StatusOr<DeviceMemory> GetDeviceMemory() {
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  NIBBLE_RETURN_IF_CUDA_ERROR(cudaMemGetInfo(&free_bytes, &total_bytes));
  return DeviceMemory{.free_bytes = static_cast<int64_t>(free_bytes),
                      .total_bytes = static_cast<int64_t>(total_bytes)};
}

absl::StatusOr<DeviceGuard> DeviceGuard::Create(int index) {
  const int previous = g_chosen;
  int current = 0;
  NIBBLE_RETURN_IF_CUDA_ERROR(cudaGetDevice(&current));
  if (previous == index && current == index) return DeviceGuard(-1);
  NIBBLE_RETURN_IF_ERROR(Choose(index));
  return DeviceGuard(previous == index ? -1 : previous);
}

DeviceGuard::~DeviceGuard() {
  if (previous_ < 0) return;
  const absl::Status status = Choose(previous_);
  if (!status.ok()) log::Error("{}", status.ToString());
}

}  // namespace nibble::gpu
