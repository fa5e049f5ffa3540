// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/gpu/device_communicator.h"

#include <vector>

#include "comm/gpu/agree.h"
#include "comm/gpu/host_transport.h"

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

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceCommunicator>> DeviceCommunicator::Create(
    Communicator* host, const DeviceCommunicatorOptions& options, ThreadPool* pool) {
  NIBBLE_RETURN_IF_ERROR(CheckOptions(host, options));
  auto transport = HostTransport::Create(host, options, pool);
  NIBBLE_RETURN_IF_ERROR(Agree(host, transport.status()));
  return transport;
}

}  // namespace nibble::comm
