// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "tests/simt/runtime.h"

#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <vector>

struct simtGraph {
  std::vector<std::function<cudaError_t()>> work;
};
struct simtStream {
  std::deque<std::function<cudaError_t()>> work;
  std::unique_ptr<simtGraph> captures;
  std::recursive_mutex mutex;  // guards both
};
struct simtEvent {
  cudaStream_t stream = nullptr;  // recorded in
  std::shared_ptr<bool> done = std::make_shared<bool>(true);
};

namespace simt {
namespace {

struct Runtime {
  std::recursive_mutex mutex;
  DeviceModel device;
  std::map<uintptr_t, size_t> device_memory;
  std::map<uintptr_t, size_t> pinned_memory;
  std::vector<cudaStream_t> streams;
  size_t bytes_in_use = 0;
  cudaError_t fail_next = cudaSuccess;
  cudaError_t sticky = cudaSuccess;
};

Runtime& Global() {
  static Runtime runtime;
  return runtime;
}

bool Contains(const std::map<uintptr_t, size_t>& ranges, const void* data, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  auto found = ranges.upper_bound(address);
  if (found == ranges.begin()) return false;
  --found;
  return address + bytes <= found->first + found->second;
}

bool IsStickyError(cudaError_t error) { return error >= cudaErrorIllegalAddress && error <= 719; }

cudaError_t TakeFailure() {
  Runtime& runtime = Global();
  const std::lock_guard lock(runtime.mutex);
  if (runtime.sticky != cudaSuccess) return runtime.sticky;
  const cudaError_t error = runtime.fail_next;
  runtime.fail_next = cudaSuccess;
  if (IsStickyError(error)) runtime.sticky = error;
  return error;
}

// All that the stream was given so far.
cudaError_t Drain(cudaStream_t stream) {
  if (stream == nullptr) return cudaSuccess;
  const std::lock_guard lock(stream->mutex);
  while (!stream->work.empty()) {
    const auto work = std::move(stream->work.front());
    stream->work.pop_front();
    if (const cudaError_t error = work(); error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t DrainAll() {
  Runtime& runtime = Global();
  std::vector<cudaStream_t> streams;
  {
    const std::lock_guard lock(runtime.mutex);
    streams = runtime.streams;
  }
  for (cudaStream_t stream : streams) {
    if (const cudaError_t error = Drain(stream); error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

bool IsDevice(const void* data, size_t bytes) {
  Runtime& runtime = Global();
  const std::lock_guard lock(runtime.mutex);
  return Contains(runtime.device_memory, data, bytes);
}

bool IsPinned(const void* data, size_t bytes) {
  Runtime& runtime = Global();
  const std::lock_guard lock(runtime.mutex);
  return Contains(runtime.pinned_memory, data, bytes);
}

}  // namespace

void SetDevice(const DeviceModel& model) { Global().device = model; }
void FailNext(cudaError_t error) { Global().fail_next = error; }
void ClearError() {
  Global().fail_next = cudaSuccess;
  Global().sticky = cudaSuccess;
}
size_t DeviceBytesInUse() { return Global().bytes_in_use; }

cudaError_t Enqueue(cudaStream_t stream, std::function<cudaError_t()> work) {
  if (const cudaError_t error = TakeFailure(); error != cudaSuccess) return error;
  if (stream == nullptr) return work();
  const std::lock_guard lock(stream->mutex);
  if (stream->captures != nullptr) {
    stream->captures->work.push_back(std::move(work));
  } else {
    stream->work.push_back(std::move(work));
  }
  return cudaSuccess;
}

cudaError_t CheckLaunch(const GridConfig& config) {
  const DeviceModel& device = Global().device;
  const size_t max_shared = device.major >= 9 ? 227 * 1024 : 163 * 1024;
  const size_t threads = size_t{config.block.x} * config.block.y * config.block.z;
  if (threads == 0 || threads > 1024 || config.shared_bytes > max_shared || config.grid.y > 65535 ||
      config.grid.z > 65535) {
    return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

}  // namespace simt

using simt::Global;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    default:
      return "cudaError";
  }
}
const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }
cudaError_t cudaGetLastError() { return Global().sticky; }
cudaError_t cudaPeekAtLastError() { return Global().sticky; }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = Global().device.count;
  return *count > 0 ? cudaSuccess : cudaErrorNoDevice;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return Global().device.count > 0 ? cudaSuccess : cudaErrorNoDevice;
}
cudaError_t cudaSetDevice(int device) {
  return device >= 0 && device < Global().device.count ? cudaSuccess : cudaErrorInvalidDevice;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (cudaSetDevice(device) != cudaSuccess) return cudaErrorInvalidDevice;
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
  *total_bytes = Global().device.memory_bytes;
  *free_bytes = *total_bytes - simt::DeviceBytesInUse();
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  if (const cudaError_t error = simt::TakeFailure(); error != cudaSuccess) return error;
  return simt::DrainAll();
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }

cudaError_t cudaMalloc(void** data, size_t bytes) {
  auto& runtime = Global();
  const std::lock_guard lock(runtime.mutex);
  if (runtime.bytes_in_use + bytes > runtime.device.memory_bytes) return cudaErrorMemoryAllocation;
  constexpr size_t kAlign = 512;
  *data = std::aligned_alloc(kAlign, (bytes + kAlign - 1) / kAlign * kAlign);
  if (*data == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*data, 0xFF, bytes);
  runtime.device_memory[reinterpret_cast<uintptr_t>(*data)] = bytes;
  runtime.bytes_in_use += bytes;
  return cudaSuccess;
}
cudaError_t cudaFree(void* data) {
  if (data == nullptr) return cudaSuccess;
  if (const cudaError_t error = simt::DrainAll(); error != cudaSuccess) return error;
  auto& runtime = Global();
  const std::lock_guard lock(runtime.mutex);
  const auto found = runtime.device_memory.find(reinterpret_cast<uintptr_t>(data));
  if (found == runtime.device_memory.end()) return cudaErrorInvalidValue;
  runtime.bytes_in_use -= found->second;
  runtime.device_memory.erase(found);
  std::free(data);
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** data, size_t bytes) {
  auto& runtime = Global();
  const std::lock_guard lock(runtime.mutex);
  *data = std::malloc(bytes);
  if (*data == nullptr) return cudaErrorMemoryAllocation;
  runtime.pinned_memory[reinterpret_cast<uintptr_t>(*data)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* data) {
  if (data == nullptr) return cudaSuccess;
  if (const cudaError_t error = simt::DrainAll(); error != cudaSuccess) return error;
  auto& runtime = Global();
  const std::lock_guard lock(runtime.mutex);
  if (runtime.pinned_memory.erase(reinterpret_cast<uintptr_t>(data)) == 0) {
    return cudaErrorInvalidValue;
  }
  std::free(data);
  return cudaSuccess;
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
  if (pageable && stream != nullptr && stream->captures != nullptr) {
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

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  if (Global().device.count == 0) return cudaErrorNoDevice;
  *stream = new simtStream;
  const std::lock_guard lock(Global().mutex);
  Global().streams.push_back(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const cudaError_t error = simt::Drain(stream);
  {
    const std::lock_guard lock(Global().mutex);
    std::erase(Global().streams, stream);
  }
  delete stream;
  return error;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (const cudaError_t error = simt::TakeFailure(); error != cudaSuccess) return error;
  if (stream != nullptr && stream->captures != nullptr) return cudaErrorStreamCaptureUnsupported;
  return simt::Drain(stream);
}
cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaStreamSynchronize(stream); }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const cudaStream_t other = event->stream;
  if (other == nullptr || other == stream) return cudaSuccess;
  return simt::Enqueue(stream, [other] { return simt::Drain(other); });
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const std::lock_guard lock(stream->mutex);
  if (stream->captures != nullptr) return cudaErrorStreamCaptureInvalidated;
  stream->captures = std::make_unique<simtGraph>();
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const std::lock_guard lock(stream->mutex);
  if (stream->captures == nullptr) return cudaErrorStreamCaptureInvalidated;
  *graph = stream->captures.release();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new simtGraph(*graph);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  return simt::Enqueue(stream, [work = exec->work] {
    for (const auto& step : work) {
      if (const cudaError_t error = step(); error != cudaSuccess) return error;
    }
    return cudaSuccess;
  });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new simtEvent;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  event->stream = stream;
  event->done = std::make_shared<bool>(false);
  return simt::Enqueue(stream, [done = event->done] {
    *done = true;
    return cudaSuccess;
  });
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return cudaStreamSynchronize(event->stream); }
cudaError_t cudaEventQuery(cudaEvent_t event) {
  return *event->done ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) {
  *ms = 0.0F;  // nothing here is timed
  return cudaSuccess;
}
