// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Collectives by kernels that write into the other ranks' memory. README.md draws the protocol.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "base/cuda/buffer.h"
#include "base/cuda/stream.h"
#include "comm/gpu/device_communicator.h"
#include "comm/gpu/p2p_link.h"
#include "comm/gpu/p2p_memory.h"
#include "comm/gpu/p2p_plan.h"

namespace nibble::comm {

class P2pCommunicator final : public DeviceCommunicator {
 public:
  // Every rank calls; all succeed or all fail with the first rank's reason. Memory is written and
  // read between every two ranks, and the kernels' sums are compared with the CPU's, before it is
  // trusted. Of ranks that share a device, kernels run at the same time or not as the driver likes.
  static absl::StatusOr<std::unique_ptr<P2pCommunicator>> Create(
      Communicator* host, const DeviceCommunicatorOptions& options);
  ~P2pCommunicator() override;

  int rank() const override { return link_.rank; }
  int size() const override { return link_.size; }
  std::string name() const override { return "p2p"; }
  bool capturable() const override { return true; }
  const AllReducePolicy& policy() const { return policy_; }

  absl::Status AllReduce(const DeviceAllReduceArgs& args, cudaStream_t stream) override;
  absl::Status AllGather(const void* send, int64_t bytes, void* recv, cudaStream_t stream) override;
  P2pCommunicator* p2p() override { return this; }
  absl::Status Check() override;
  void Abort(const std::string& reason) override;

  // What a kernel needs that sums on its way and takes rows: INVALID_ARGUMENT where a row is too
  // long for that. The caller launches it on all ranks, part by part (p2p_job.cuh).
  struct RowPlan {
    CodecDesc codec;
    P2pPlan plan;
  };
  absl::StatusOr<RowPlan> PlanRows(const DeviceAllReduceArgs& args) const;
  const P2pLink& link() const { return link_; }

 private:
  P2pCommunicator(Communicator* host, const DeviceCommunicatorOptions& options, P2pMemory memory);
  absl::Status Prepare(int64_t region_bytes);
  absl::Status Probe(uint32_t nonce);
  absl::Status ReadProbe(uint32_t nonce);
  // All ranks' verdict.
  absl::Status SelfTest();
  absl::Status SumKnownValues(int64_t row_size, float* data, const gpu::Stream& stream);
  absl::Status Measure();
  struct Stopwatch;
  absl::StatusOr<double> Time(const AllReduceChoice& choice, int64_t message_bytes, void* data,
                              const Stopwatch& watch);
  absl::Status TimeRuns(const AllReduceChoice& choice, const DeviceAllReduceArgs& args,
                        const Stopwatch& watch);
  absl::Status AllReduceBy(const AllReduceChoice& choice, const DeviceAllReduceArgs& args,
                           cudaStream_t stream);
  absl::Status Fault() const;
  // Ends kernels here and on the peers that wait for one another.
  void EndKernels();

  Communicator* const host_;
  const DeviceCommunicatorOptions options_;
  P2pMemory memory_;
  gpu::DeviceBuffer<P2pProgress> progress_;  // [1]
  gpu::PinnedBuffer<P2pHostWords> words_;    // [1]
  gpu::PinnedBuffer<uint32_t> ones_;         // [1] of 1: what peers are told by Abort
  gpu::Stream abort_stream_;
  P2pLink link_;
  P2pLimits limits_;
  AllReducePolicy policy_;
  mutable std::mutex mutex_;
  absl::Status broken_;  // guarded by mutex_
};

}  // namespace nibble::comm
