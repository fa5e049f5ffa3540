// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/gpu/p2p_memory.h"

#include <cuda_runtime.h>

#include <utility>

#include "base/cuda/buffer.h"
#include "base/cuda/error.h"
#include "base/cuda/stream.h"
#include "base/log.h"
#include "comm/gpu/agree.h"

namespace nibble::comm {
namespace {

absl::Status EnablePeer(int device) {
  const cudaError_t error = cudaDeviceEnablePeerAccess(device, 0);
  if (error == cudaErrorPeerAccessAlreadyEnabled) {
    (void)cudaGetLastError();
    return absl::OkStatus();
  }
  return gpu::ToStatus(error, "cudaDeviceEnablePeerAccess");
}

}  // namespace

// What ranks tell each other; plain bytes.
struct P2pMemory::Handle {
  uint64_t process = 0;
  uint64_t address = 0;  // in that process
  int64_t device_index = 0;
  cudaIpcMemHandle_t ipc = {};
};

absl::StatusOr<P2pMemory> P2pMemory::Create(Communicator* host, const gpu::DeviceCaps& caps,
                                            int64_t bytes) {
  if (host->size() > kMaxP2pRanks) {
    return InvalidArgument("{} ranks, the limit of peer-to-peer access is {}", host->size(),
                           kMaxP2pRanks);
  }
  const RankProcess process = OfThisProcess();
  std::vector<RankProcess> group(static_cast<size_t>(host->size()));
  NIBBLE_RETURN_IF_ERROR(host->AllGather(&process, sizeof(process), group.data()));
  P2pMemory memory(caps.index);
  Handle own;
  absl::Status status = memory.Allocate(bytes, group);
  if (status.ok()) status = memory.DescribeOwn(caps, &own);
  NIBBLE_RETURN_IF_ERROR(Agree(host, status));
  std::vector<Handle> handles(static_cast<size_t>(host->size()));
  NIBBLE_RETURN_IF_ERROR(host->AllGather(&own, sizeof(own), handles.data()));
  NIBBLE_RETURN_IF_ERROR(Agree(host, memory.Map(host->rank(), handles)));
  return memory;
}

absl::Status P2pMemory::Allocate(int64_t bytes, std::span<const RankProcess> group) {
  NIBBLE_ASSIGN_OR_RETURN(own_, ExportedMemory::Take(device_, static_cast<size_t>(bytes), group));
  NIBBLE_ASSIGN_OR_RETURN(const gpu::Stream stream, gpu::Stream::Create());
  NIBBLE_RETURN_IF_ERROR(gpu::ZeroDevice(own_.data(), own_.size(), stream.get()));
  return stream.Synchronize();
}

absl::Status P2pMemory::DescribeOwn(const gpu::DeviceCaps& caps, Handle* own) const {
  own->process = OfThisProcess().id;
  own->address = reinterpret_cast<uint64_t>(own_.data());
  own->device_index = caps.index;
  NIBBLE_RETURN_IF_CUDA_ERROR(cudaIpcGetMemHandle(&own->ipc, own_.data()));
  return absl::OkStatus();
}

absl::Status P2pMemory::Map(int rank, const std::vector<Handle>& handles) {
  const Handle& own = handles[static_cast<size_t>(rank)];
  imported_ = ImportedMemory::Begin();
  for (size_t r = 0; r < handles.size(); ++r) {
    const Handle& handle = handles[r];
    if (static_cast<int>(r) == rank) {
      of_rank_[r] = own_.data();
      continue;
    }
    if (handle.process == own.process) {
      if (handle.device_index != own.device_index) {
        NIBBLE_RETURN_IF_ERROR(EnablePeer(static_cast<int>(handle.device_index)));
      }
      of_rank_[r] = reinterpret_cast<uint8_t*>(handle.address);
      continue;
    }
    void* data = nullptr;
    NIBBLE_RETURN_IF_ERROR(Annotate(
        gpu::ToStatus(cudaIpcOpenMemHandle(&data, handle.ipc, cudaIpcMemLazyEnablePeerAccess),
                      "cudaIpcOpenMemHandle"),
        fmt::format("the memory of rank {}", r)));
    opened_.push_back(data);
    of_rank_[r] = static_cast<uint8_t*>(data);
  }
  return absl::OkStatus();
}

P2pMemory& P2pMemory::operator=(P2pMemory&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(own_, other.own_);
  std::swap(of_rank_, other.of_rank_);
  std::swap(imported_, other.imported_);
  std::swap(opened_, other.opened_);
  return *this;
}

P2pMemory::~P2pMemory() {
  if (opened_.empty()) return;
  const auto device = gpu::DeviceGuard::Create(device_);
  absl::Status status = device.status();
  for (void* const data : opened_) {
    if (!device.ok()) break;
    status.Update(gpu::ToStatus(cudaIpcCloseMemHandle(data), "cudaIpcCloseMemHandle"));
  }
  if (status.ok()) return;
  log::Error("memory of other ranks stays mapped: {}", status.ToString());
  imported_.KeepForEver();
}

}  // namespace nibble::comm
