// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What every transport asks of its arguments before anything is enqueued.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "comm/gpu/device_communicator.h"

namespace nibble::comm {

// INVALID_ARGUMENT naming value and limit.
absl::Status CheckAllReduce(const DeviceAllReduceArgs& args, int64_t max_values);
absl::Status CheckAllGather(const void* send, int64_t bytes, const void* recv);

}  // namespace nibble::comm
