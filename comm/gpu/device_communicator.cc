// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/gpu/device_communicator.h"

#include <algorithm>
#include <array>
#include <vector>

#include "base/cuda/buffer.h"
#include "base/cuda/error.h"
#include "base/log.h"
#include "comm/gpu/agree.h"
#include "comm/gpu/device_args.h"
#include "comm/gpu/host_transport.h"
#include "comm/gpu/nccl_communicator.h"
#include "comm/gpu/p2p_communicator.h"

namespace nibble::comm {
namespace {

// What must be the same everywhere for the ranks' kernels to fit together.
struct Shape {
  int64_t max_values = 0;
  int64_t transport = 0;

  friend bool operator==(const Shape&, const Shape&) = default;
};

absl::Status CheckOptions(Communicator* host, const DeviceCommunicatorOptions& options) {
  constexpr int64_t kMaxValues = int64_t{1} << 40;
  absl::Status mine;
  if (options.max_values < 0 || options.max_values > kMaxValues) {
    mine = InvalidArgument("all-reduces of {} values, the limits are 0 and {}", options.max_values,
                           kMaxValues);
  }
  NIBBLE_RETURN_IF_ERROR(Agree(host, mine));
  const Shape own = {options.max_values, static_cast<int64_t>(options.transport)};
  std::vector<Shape> all(static_cast<size_t>(host->size()));
  NIBBLE_RETURN_IF_ERROR(host->AllGather(&own, sizeof(own), all.data()));
  for (size_t r = 0; r < all.size(); ++r) {
    if (all[r] == all[0]) continue;
    return InvalidArgument(
        "rank {} wants all-reduces of {} values by transport {}, rank 0 of {} values by {}", r,
        all[r].max_values, all[r].transport, all[0].max_values, all[0].transport);
  }
  return absl::OkStatus();
}

// A group of one: nothing to send.
class OneRank final : public DeviceCommunicator {
 public:
  explicit OneRank(int64_t max_values) : max_values_(max_values) {}

  int rank() const override { return 0; }
  int size() const override { return 1; }
  std::string name() const override { return "one rank"; }
  bool capturable() const override { return true; }
  absl::Status AllReduce(const DeviceAllReduceArgs& args, cudaStream_t) override {
    return CheckAllReduce(args, max_values_);
  }
  absl::Status AllGather(const void* send, int64_t bytes, void* recv,
                         cudaStream_t stream) override {
    NIBBLE_RETURN_IF_ERROR(CheckAllGather(send, bytes, recv));
    return gpu::CopyOnDevice(recv, send, static_cast<size_t>(bytes), stream);
  }
  absl::Status Check() override { return absl::OkStatus(); }
  void Abort(const std::string&) override {}

 private:
  const int64_t max_values_;
};

// Whether no two ranks are on one device: which kernels of one run at a time is its driver's
// choice.
absl::StatusOr<bool> HaveDevicesEach(Communicator* host, int device) {
  using Id = std::array<char, 16>;
  static_assert(sizeof(Id) == sizeof(cudaDeviceProp::uuid));
  cudaDeviceProp properties{};
  NIBBLE_RETURN_IF_ERROR(Agree(host, gpu::ToStatus(cudaGetDeviceProperties(&properties, device),
                                                   "cudaGetDeviceProperties")));
  std::vector<Id> all(static_cast<size_t>(host->size()));
  NIBBLE_RETURN_IF_ERROR(host->AllGather(&properties.uuid, sizeof(Id), all.data()));
  std::sort(all.begin(), all.end());
  return std::adjacent_find(all.begin(), all.end()) == all.end();
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceCommunicator>> DeviceCommunicator::Create(
    Communicator* host, const DeviceCommunicatorOptions& options, ThreadPool* pool) {
  NIBBLE_RETURN_IF_ERROR(CheckOptions(host, options));
  const DeviceTransport wanted = options.transport;
  const bool any = wanted == DeviceTransport::kAuto;
  if (host->size() == 1 && wanted != DeviceTransport::kHost) {
    return std::make_unique<OneRank>(options.max_values);
  }
  // By name, ranks may share a device, as tests do.
  bool between_devices = true;
  if (any) {
    NIBBLE_ASSIGN_OR_RETURN(between_devices, HaveDevicesEach(host, options.caps.index));
  }
  const auto note = [&](const char* what, const absl::Status& status) {
    if (host->rank() == 0)
      log::Info("devices are not connected by {}: {}", what, status.ToString());
  };
  if ((any && between_devices) || wanted == DeviceTransport::kP2p) {
    auto p2p = P2pCommunicator::Create(host, options);
    if (p2p.ok() || !any) return p2p;
    note("mapped memory", p2p.status());
  }
  if ((any && between_devices) || wanted == DeviceTransport::kNccl) {
    auto nccl = NcclCommunicator::Create(NcclLibrary::Get(), host, options);
    if (nccl.ok() || !any) return nccl;
    note("NCCL", nccl.status());
  }
  auto transport = HostTransport::Create(host, options, pool);
  NIBBLE_RETURN_IF_ERROR(Agree(host, transport.status()));
  return transport;
}

}  // namespace nibble::comm
