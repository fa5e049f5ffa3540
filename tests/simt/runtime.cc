// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "tests/simt/runtime.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "tests/simt/runtime_state.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace simt {
namespace {

bool Contains(const std::map<uintptr_t, size_t>& ranges, const void* data, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  auto found = ranges.upper_bound(address);
  if (found == ranges.begin()) return false;
  --found;
  return address + bytes <= found->first + found->second;
}

thread_local int g_current_device = 0;

bool IsStickyError(cudaError_t error) { return error >= cudaErrorIllegalAddress && error <= 719; }

constexpr size_t kAlign = 512;  // of device memory
size_t Rounded(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

size_t MaxSharedBytes(const DeviceModel& device) {
  return device.major >= 9 ? 227 * 1024 : 163 * 1024;
}

}  // namespace

Runtime& Global() {
  static Runtime runtime;
  return runtime;
}

cudaError_t MakeContext() {
  Runtime& runtime = Global();
  const std::lock_guard lock(runtime.mutex);
  if (runtime.device.count == 0) return cudaErrorNoDevice;
  runtime.contexts.insert(g_current_device);
  return cudaSuccess;
}

cudaError_t Sticky() {
  const std::lock_guard lock(Global().mutex);
  return Global().sticky;
}

cudaError_t TakeFailure() {
  Runtime& runtime = Global();
  const std::lock_guard lock(runtime.mutex);
  if (runtime.sticky != cudaSuccess) return runtime.sticky;
  const cudaError_t error = runtime.fail_next;
  runtime.fail_next = cudaSuccess;
  if (IsStickyError(error)) runtime.sticky = error;
  return error;
}

bool IsDevice(const void* data, size_t bytes) {
  const std::lock_guard lock(Global().mutex);
  return Contains(Global().device_memory, data, bytes);
}

bool IsPinned(const void* data, size_t bytes) {
  const std::lock_guard lock(Global().mutex);
  return Contains(Global().pinned_memory, data, bytes);
}

void SetDevice(const DeviceModel& model) {
  Runtime& runtime = Global();
  const std::lock_guard lock(runtime.mutex);
  runtime.device = model;
  runtime.contexts.clear();
  g_current_device = 0;
}
bool HasContext(int device) {
  const std::lock_guard lock(Global().mutex);
  return Global().contexts.count(device) > 0;
}
bool HasKernelImages() { return Global().device.has_kernel_images; }
void FailNext(cudaError_t error) { Global().fail_next = error; }
void ClearError() {
  Global().fail_next = cudaSuccess;
  Global().sticky = cudaSuccess;
}
size_t DeviceBytesInUse() { return Global().bytes_in_use; }

int BlocksPerProcessor(const GridConfig& config) {
  constexpr size_t kMaxThreads = 2048;
  constexpr size_t kMaxBlocks = 32;
  constexpr size_t kReservedBytes = 1024;  // of each block's shared memory
  const size_t threads = size_t{config.block.x} * config.block.y * config.block.z;
  const size_t shared_bytes = MaxSharedBytes(Global().device) + kReservedBytes;
  return static_cast<int>(std::min({kMaxBlocks, kMaxThreads / std::max<size_t>(threads, 1),
                                    shared_bytes / (config.shared_bytes + kReservedBytes)}));
}

cudaError_t CheckLaunch(const GridConfig& config) {
  const DeviceModel& device = Global().device;
  if (device.count == 0) return cudaErrorNoDevice;
  const size_t threads = size_t{config.block.x} * config.block.y * config.block.z;
  if (threads == 0 || threads > 1024 || config.block.z > 64 ||
      config.shared_bytes > MaxSharedBytes(device) || config.grid.x > 0x7FFFFFFFU ||
      config.grid.y > 65535 || config.grid.z > 65535 ||
      size_t{config.grid.x} * config.grid.y * config.grid.z == 0) {
    return cudaErrorInvalidValue;
  }
  const size_t num_blocks = size_t{config.grid.x} * config.grid.y * config.grid.z;
  if (config.cooperative &&
      num_blocks > static_cast<size_t>(BlocksPerProcessor(config) * device.num_sms)) {
    return cudaErrorCooperativeLaunchTooLarge;
  }
  return cudaSuccess;
}

}  // namespace simt

using simt::Global;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define SIMT_NAME(name) \
  case name:            \
    return #name
    SIMT_NAME(cudaSuccess);
    SIMT_NAME(cudaErrorInvalidValue);
    SIMT_NAME(cudaErrorMemoryAllocation);
    SIMT_NAME(cudaErrorInsufficientDriver);
    SIMT_NAME(cudaErrorNoDevice);
    SIMT_NAME(cudaErrorInvalidDevice);
    SIMT_NAME(cudaErrorNotReady);
    SIMT_NAME(cudaErrorIllegalAddress);
    SIMT_NAME(cudaErrorLaunchFailure);
    SIMT_NAME(cudaErrorCooperativeLaunchTooLarge);
    SIMT_NAME(cudaErrorStreamCaptureUnsupported);
    SIMT_NAME(cudaErrorStreamCaptureInvalidated);
    SIMT_NAME(cudaErrorStreamCaptureUnjoined);
    SIMT_NAME(cudaErrorStreamCaptureIsolation);
#undef SIMT_NAME
    default:
      return "cudaError";
  }
}
const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }
cudaError_t cudaGetLastError() { return Global().sticky; }
cudaError_t cudaPeekAtLastError() { return Global().sticky; }

cudaError_t cudaDriverGetVersion(int* version) {
  *version = Global().device.driver_version;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;
  if (Global().device.driver_version < CUDART_VERSION) return cudaErrorInsufficientDriver;
  *count = Global().device.count;
  return *count > 0 ? cudaSuccess : cudaErrorNoDevice;
}
cudaError_t cudaGetDevice(int* device) {
  *device = simt::g_current_device;
  return Global().device.count > 0 ? cudaSuccess : cudaErrorNoDevice;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= Global().device.count) return cudaErrorInvalidDevice;
  simt::g_current_device = device;
  return simt::MakeContext();  // since CUDA 12
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device < 0 || device >= Global().device.count) return cudaErrorInvalidDevice;
  const simt::DeviceModel& model = Global().device;
  *properties = {};
  std::strcpy(properties->name, "simt");
  properties->totalGlobalMem = model.memory_bytes;
  properties->sharedMemPerBlockOptin = model.major >= 9 ? 227 * 1024 : 163 * 1024;
  properties->major = model.major;
  properties->minor = model.minor;
  properties->multiProcessorCount = model.num_sms;
  properties->l2CacheSize = 4 << 20;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp properties;
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, device)) return error;
  switch (attribute) {
    case cudaDevAttrClockRate:
      *value = 1'000'000;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = properties.multiProcessorCount;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = properties.major;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = properties.minor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(properties.sharedMemPerBlockOptin);
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  if (const cudaError_t error = simt::MakeContext(); error != cudaSuccess) return error;
  *total_bytes = Global().device.memory_bytes;
  *free_bytes = *total_bytes - simt::DeviceBytesInUse();
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  if (const cudaError_t error = simt::RefuseInCapture(); error != cudaSuccess) return error;
  if (const cudaError_t error = simt::TakeFailure(); error != cudaSuccess) return error;
  return simt::DrainAll();
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }

cudaError_t cudaMalloc(void** data, size_t bytes) {
  if (const cudaError_t error = simt::Sticky(); error != cudaSuccess) return error;
  if (const cudaError_t error = simt::RefuseInCapture(); error != cudaSuccess) return error;
  auto& runtime = Global();
  const std::lock_guard lock(runtime.mutex);
  if (const cudaError_t error = simt::MakeContext(); error != cudaSuccess) return error;
  if (bytes > runtime.device.memory_bytes - runtime.bytes_in_use) return cudaErrorMemoryAllocation;
  *data = std::aligned_alloc(simt::kAlign, simt::Rounded(bytes));
  if (*data == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*data, 0xFF, bytes);
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(static_cast<char*>(*data) + bytes, simt::Rounded(bytes) - bytes);
#endif
  runtime.device_memory[reinterpret_cast<uintptr_t>(*data)] = bytes;
  runtime.bytes_in_use += bytes;
  return cudaSuccess;
}
// After a sticky error, too: the emulator leaks nothing.
cudaError_t cudaFree(void* data) {
  if (data == nullptr) return cudaSuccess;
  (void)simt::MakeContext();  // not of the device that the memory is on
  if (const cudaError_t error = simt::RefuseInCapture(); error != cudaSuccess) return error;
  cudaError_t result = simt::Sticky();
  if (result == cudaSuccess) result = simt::DrainAll();
  auto& runtime = Global();
  const std::lock_guard lock(runtime.mutex);
  const auto found = runtime.device_memory.find(reinterpret_cast<uintptr_t>(data));
  if (found == runtime.device_memory.end()) return cudaErrorInvalidValue;
  runtime.bytes_in_use -= found->second;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(data, simt::Rounded(found->second));
#endif
  runtime.device_memory.erase(found);
  std::free(data);
  return result;
}
cudaError_t cudaMallocHost(void** data, size_t bytes) {
  if (const cudaError_t error = simt::Sticky(); error != cudaSuccess) return error;
  if (const cudaError_t error = simt::RefuseInCapture(); error != cudaSuccess) return error;
  auto& runtime = Global();
  const std::lock_guard lock(runtime.mutex);
  if (const cudaError_t error = simt::MakeContext(); error != cudaSuccess) return error;
  *data = std::malloc(bytes);
  if (*data == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*data, 0xFF, bytes);
  runtime.pinned_memory[reinterpret_cast<uintptr_t>(*data)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* data) {
  if (data == nullptr) return cudaSuccess;
  if (const cudaError_t error = simt::RefuseInCapture(); error != cudaSuccess) return error;
  cudaError_t result = simt::Sticky();
  if (result == cudaSuccess) result = simt::DrainAll();
  auto& runtime = Global();
  const std::lock_guard lock(runtime.mutex);
  if (runtime.pinned_memory.erase(reinterpret_cast<uintptr_t>(data)) == 0) {
    return cudaErrorInvalidValue;
  }
  std::free(data);
  return result;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  if (const cudaError_t error = cudaDeviceSynchronize(); error != cudaSuccess) return error;
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
  if (height == 0 || width == 0) return cudaSuccess;
  const size_t to_bytes = to_pitch * (height - 1) + width;
  const size_t from_bytes = from_pitch * (height - 1) + width;
  const bool to_device = simt::IsDevice(to, to_bytes);
  const bool from_device = simt::IsDevice(from, from_bytes);
  if ((kind == cudaMemcpyHostToDevice && (!to_device || from_device)) ||
      (kind == cudaMemcpyDeviceToHost && (to_device || !from_device)) ||
      (kind == cudaMemcpyDeviceToDevice && (!to_device || !from_device))) {
    return cudaErrorInvalidValue;
  }
  const bool pageable = (!from_device && !simt::IsPinned(from, from_bytes)) ||
                        (!to_device && !simt::IsPinned(to, to_bytes));
  if (pageable && simt::IsCapturing(stream)) {
    (void)cudaStreamSynchronize(stream);  // which spoils the capture
    return cudaErrorStreamCaptureUnsupported;
  }
  const auto copy = [=](const void* source) {
    for (size_t row = 0; row < height; ++row) {
      std::memcpy(static_cast<char*>(to) + row * to_pitch,
                  static_cast<const char*>(source) + row * from_pitch, width);
    }
    return cudaSuccess;
  };
  if (!from_device && pageable) {  // staged before the call returns
    auto staged = std::make_shared<std::vector<char>>(static_cast<const char*>(from),
                                                      static_cast<const char*>(from) + from_bytes);
    return simt::Enqueue(stream, [=] { return copy(staged->data()); });
  }
  const cudaError_t error = simt::Enqueue(stream, [=] { return copy(from); });
  if (error != cudaSuccess || !pageable) return error;
  return simt::Drain(stream);  // done when the call returns
}
cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t stream) {
  if (!simt::IsDevice(data, bytes)) return cudaErrorInvalidValue;
  return simt::Enqueue(stream, [=] {
    std::memset(data, value, bytes);
    return cudaSuccess;
  });
}

// Processes do not share memory here: a handle is an address of this one.
cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* data) {
  if (!simt::IsDevice(data, 1)) return cudaErrorInvalidValue;
  *handle = {};
  std::memcpy(handle->reserved, &data, sizeof(data));
  return cudaSuccess;
}
cudaError_t cudaIpcOpenMemHandle(void** data, cudaIpcMemHandle_t handle, unsigned) {
  std::memcpy(data, handle.reserved, sizeof(*data));
  return simt::IsDevice(*data, 1) ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaIpcCloseMemHandle(void*) { return cudaSuccess; }
