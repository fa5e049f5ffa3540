// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Frames as messages: a large one goes in parts, so that messages stay small and heartbeats pass
// between them.
#pragma once

#include <cstddef>
#include <functional>

#include "base/status.h"
#include "comm/ranks/rank_hub.h"
#include "nibble/v1/cluster.pb.h"

namespace nibble::comm {

inline constexpr size_t kMaxPartBytes = size_t{1} << 20;
// Of a gRPC message: a part and what is around it. Larger ones are refused unread.
inline constexpr int kMaxMessageBytes = static_cast<int>(2 * kMaxPartBytes);

// Calls `take` with each part in order.
void SplitFrame(int rank, Frame frame, const std::function<void(v1::FramePart)>& take);

// The other way, for one rank.
class FrameJoiner {
 public:
  // True: `frame` is whole. INVALID_ARGUMENT for what SplitFrame does not make.
  absl::StatusOr<bool> Add(v1::FramePart&& part, Frame* frame);
  // Forgets a frame that is not whole.
  void Reset() { *this = FrameJoiner(); }

 private:
  bool begun_ = false;
  Frame frame_;
  uint64_t remaining_ = 0;  // of frame_, once begun_
};

}  // namespace nibble::comm
