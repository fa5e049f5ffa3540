// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Collectives on device memory, enqueued on a stream. Every rank calls the same ones in the same
// order with the same shapes; results are bit-identical on all ranks.
//
//   NIBBLE_ASSIGN_OR_RETURN(auto device, DeviceCommunicator::Create(host, options));
//   NIBBLE_RETURN_IF_ERROR(device->AllReduce({.data = delta, ...}, stream));
//   NIBBLE_RETURN_IF_ERROR(device->Check());   // after synchronizing
//
// How ranks reach each other is found out at Create(), by a real write and read between every two,
// and all ranks agree on it through the host's communicator:
//   P2P     mapped memory of the others (CUDA IPC): one-shot, two-shot and compressed kernels
//   NCCL    where there is no P2P, or between hosts; opened at run time
//   host    copies through pinned memory and the host's communicator, with its codecs: always there
#pragma once

#include <cuda_runtime.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <stop_token>
#include <string>

#include "base/cuda/device.h"
#include "base/dtype.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "comm/communicator.h"

namespace nibble::comm {

class P2pCommunicator;

enum class DeviceTransport { kAuto, kP2p, kNccl, kHost };

struct DeviceCommunicatorOptions {
  gpu::DeviceCaps caps;
  DeviceTransport transport = DeviceTransport::kAuto;  // others: refused where they do not work
  int64_t max_values = 0;                              // of one AllReduce
  std::chrono::nanoseconds timeout{std::chrono::seconds(60)};  // of one collective on the device
  // Ends what Create() waits for by other means than `host`, whose waits end by its own Abort().
  std::stop_token stop;
  // `auto`, where ranks reach each other's memory: which algorithm and codec a size takes is
  // measured on the devices. Else the codecs are those of the host's policy.
  bool measure_policy = false;
  // Of all ranks, not empty: what p2p()->policy() was in an earlier group of theirs, whose sums
  // have the bits of that one's. Nothing is measured then.
  AllReducePolicy policy;
  CodecDesc codec;       // with measure_policy: group size and options of what is tried
  int64_t row_size = 0;  // with measure_policy: of the messages that will come; 0: not known
};

struct DeviceAllReduceArgs {
  void* data = nullptr;        // device memory, [num_rows, row_size], contiguous; in place
  DType dtype = DType::kBf16;  // f32 or bf16; sums are float32 in rank order
  int64_t num_rows = 0;
  int64_t row_size = 0;
  bool exact = false;  // whatever the policy says: sums that must not be rounded by a codec
};

class DeviceCommunicator {
 public:
  // `host` (not owned, outlives it) connects the same ranks; its policy says which codec a message
  // gets, by size. Blocks until all ranks are here.
  static absl::StatusOr<std::unique_ptr<DeviceCommunicator>> Create(
      Communicator* host, const DeviceCommunicatorOptions& options, ThreadPool* pool);
  virtual ~DeviceCommunicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual std::string name() const = 0;  // "p2p", "nccl 2.28.9", "host"
  // Whether its calls may be captured in a graph and replayed.
  virtual bool capturable() const = 0;

  virtual absl::Status AllReduce(const DeviceAllReduceArgs& args, cudaStream_t stream) = 0;
  // recv [size() * bytes] gets every rank's `send` [bytes] in rank order; both aligned to 16.
  virtual absl::Status AllGather(const void* send, int64_t bytes, void* recv,
                                 cudaStream_t stream) = 0;

  // What lets other kernels sum on their way; null where ranks do not reach each other's memory.
  virtual P2pCommunicator* p2p() { return nullptr; }

  // OK, or why a collective enqueued before has failed or hangs (UNAVAILABLE, naming the rank where
  // it is known). Never blocks.
  virtual absl::Status Check() = 0;
  // Ends what waits on the device, here and on the peers. Thread-safe.
  virtual void Abort(const std::string& reason) = 0;
};

}  // namespace nibble::comm
