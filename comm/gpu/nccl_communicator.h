// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Collectives over NCCL, for devices that do not map each other's memory. An all-reduce is
// comm/README.md's two steps, in every codec: encode, exchange, reduce in rank order, exchange,
// decode. NCCL only carries bytes, so sums have the bits of all other transports.
#pragma once

#include <memory>
#include <string>

#include "base/cuda/buffer.h"
#include "comm/gpu/device_communicator.h"
#include "comm/gpu/nccl_session.h"

namespace nibble::comm {

class NcclCommunicator final : public DeviceCommunicator {
 public:
  // Every rank calls; all succeed or all fail with the first rank's reason.
  static absl::StatusOr<std::unique_ptr<NcclCommunicator>> Create(
      absl::StatusOr<const NcclLibrary*> nccl, Communicator* host,
      const DeviceCommunicatorOptions& options);

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }
  std::string name() const override { return "nccl " + session_->library().version_text(); }
  // Its calls return before NCCL has taken them, which a capture would miss.
  bool capturable() const override { return false; }

  absl::Status AllReduce(const DeviceAllReduceArgs& args, cudaStream_t stream) override;
  absl::Status AllGather(const void* send, int64_t bytes, void* recv, cudaStream_t stream) override;
  absl::Status Check() override { return session_->Check(); }
  void Abort(const std::string& reason) override;

 private:
  struct Part;
  struct Parcel;

  NcclCommunicator(Communicator* host, int64_t max_values) : host_(host), max_values_(max_values) {}
  absl::Status ReducePart(const Part& part, cudaStream_t stream);
  // With every peer, parcel_of(peer).
  template <typename ParcelOf>
  absl::Status Exchange(const ParcelOf& parcel_of, cudaStream_t stream);

  Communicator* const host_;
  const int64_t max_values_;
  std::unique_ptr<NcclSession> session_;
  // Of a part: every rank's stripe, coded here; what the others coded of this one's; the sums.
  gpu::DeviceBuffer<uint8_t> out_;
  gpu::DeviceBuffer<uint8_t> in_;
  gpu::DeviceBuffer<uint8_t> sums_;
  int64_t slot_bytes_ = 0;  // of each of these, by rank
};

}  // namespace nibble::comm
