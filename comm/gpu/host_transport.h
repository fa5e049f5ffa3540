// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Collectives on device memory by way of the host: a copy to pinned memory, the host's communicator
// with its codecs, a copy back. Works wherever the host's works, between hosts too. A call returns
// when the host's part is done.
#pragma once

#include <memory>
#include <mutex>

#include "base/cuda/buffer.h"
#include "base/cuda/stream.h"
#include "comm/gpu/device_communicator.h"

namespace nibble::comm {

class HostTransport final : public DeviceCommunicator {
 public:
  static absl::StatusOr<std::unique_ptr<HostTransport>> Create(
      Communicator* host, const DeviceCommunicatorOptions& options, ThreadPool* pool);

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }
  std::string name() const override { return "host"; }
  bool capturable() const override { return false; }

  absl::Status AllReduce(const DeviceAllReduceArgs& args, cudaStream_t stream) override;
  absl::Status AllGather(const void* send, int64_t bytes, void* recv, cudaStream_t stream) override;
  absl::Status Check() override;
  void Abort(const std::string& reason) override;

 private:
  HostTransport(Communicator* host, ThreadPool* pool) : host_(host), pool_(pool) {}

  absl::Status RunAllReduce(const DeviceAllReduceArgs& args, cudaStream_t stream);
  absl::Status RunAllGather(const void* send, int64_t bytes, void* recv, cudaStream_t stream);
  // Remembers the first error.
  absl::Status End(absl::Status status);

  Communicator* const host_;
  ThreadPool* const pool_;
  int64_t max_values_ = 0;
  gpu::PinnedBuffer<float> values_;     // [max_values]
  gpu::PinnedBuffer<uint16_t> halves_;  // [max_values] bf16
  gpu::PinnedBuffer<std::byte> parts_;  // of an AllGather: one to send, size() received
  gpu::Event copied_;                   // the last copy out of these, in whichever stream
  std::mutex mutex_;
  absl::Status broken_;  // guarded by mutex_
};

}  // namespace nibble::comm
