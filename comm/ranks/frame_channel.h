// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A rank's own end of its channel.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/status.h"
#include "comm/ranks/rank_hub.h"

namespace nibble::comm {

class FrameChannel {
 public:
  virtual ~FrameChannel() = default;
  // UNAVAILABLE once the driver is gone. Thread-safe.
  virtual absl::Status Send(const Frame& frame) = 0;
  // Waits for the next frame; UNAVAILABLE once the driver is gone: then a rank ends. One thread.
  virtual absl::StatusOr<Frame> Receive() = 0;
};

// Over a connected stream socket, which it then owns: magic, type, size, payload. A peer that
// sends something else is DATA_LOSS.
std::unique_ptr<FrameChannel> MakeSocketChannel(int socket);

}  // namespace nibble::comm
