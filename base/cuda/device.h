// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The CUDA devices of this host.
//
//   NIBBLE_ASSIGN_OR_RETURN(std::vector<DeviceCaps> devices, gpu::ListDevices());
//   NIBBLE_ASSIGN_OR_RETURN(gpu::DeviceGuard guard, gpu::DeviceGuard::Create(0));
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace nibble::gpu {

// What kernels are chosen by. Plain data: choices are tested without a device.
struct DeviceCaps {
  int index = 0;
  std::string name;  // "NVIDIA H100 80GB HBM3"
  int sm = 0;        // compute capability * 10: 80, 89, 90, 100
  int num_sms = 0;   // streaming multiprocessors
  int64_t memory_bytes = 0;
  int64_t l2_bytes = 0;
  int64_t max_shared_bytes = 0;  // dynamic shared memory that a block may opt in to
};

// Empty where there is no driver or no device: never an error for that. Thread-safe. Makes no
// context.
absl::StatusOr<std::vector<DeviceCaps>> ListDevices();
// Of a host where that is empty: no driver, one that is too old for this program, or no device.
std::string WhyNoDevice();
absl::StatusOr<DeviceCaps> GetDeviceCaps(int index);

// The newest CUDA that the driver knows, "13.0"; UNAVAILABLE without a driver.
absl::StatusOr<std::string> DriverVersion();

struct DeviceMemory {
  int64_t free_bytes = 0;
  int64_t total_bytes = 0;
};
// Of the current device.
absl::StatusOr<DeviceMemory> GetDeviceMemory();

// Makes a device the calling thread's current one, and the one that the thread had chosen before,
// by a guard too, again at the end. A thread that had chosen none keeps this one: selecting a
// device makes a context there, and device 0, which is current until one is chosen, may be another
// rank's.
class DeviceGuard {
 public:
  static absl::StatusOr<DeviceGuard> Create(int index);
  DeviceGuard(DeviceGuard&& other) noexcept : previous_(other.previous_) { other.previous_ = -1; }
  DeviceGuard& operator=(DeviceGuard&&) = delete;
  ~DeviceGuard();

 private:
  explicit DeviceGuard(int previous) : previous_(previous) {}
  int previous_;  // -1: nothing to do
};

}  // namespace nibble::gpu
