// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/cluster/frame_parts.h"

#include <algorithm>
#include <utility>

namespace nibble::comm {

void SplitFrame(int rank, Frame frame, const std::function<void(v1::FramePart)>& take) {
  size_t at = 0;
  do {
    const size_t count = std::min(kMaxPartBytes, frame.payload.size() - at);
    v1::FramePart part;
    part.set_rank(static_cast<uint32_t>(rank));
    part.set_type(frame.type);
    if (count == frame.payload.size()) {
      part.set_payload(std::move(frame.payload));
      return take(std::move(part));
    }
    part.set_payload(frame.payload.data() + at, count);
    at += count;
    part.set_remaining(frame.payload.size() - at);
    take(std::move(part));
  } while (at < frame.payload.size());
}

absl::StatusOr<bool> FrameJoiner::Add(v1::FramePart&& part, Frame* frame) {
  const uint64_t count = part.payload().size();
  const uint64_t remaining = part.remaining();
  if (!begun_) {
    if (remaining > Frame::kMaxPayloadBytes || count + remaining > Frame::kMaxPayloadBytes) {
      return InvalidArgument("a frame of rank {} with {} bytes and {} more, the limit is {}",
                             part.rank(), count, remaining, Frame::kMaxPayloadBytes);
    }
    frame_.type = part.type();
    frame_.payload = std::move(*part.mutable_payload());
  } else {
    if (part.type() != frame_.type || count > remaining_ || remaining != remaining_ - count) {
      return InvalidArgument(
          "a frame of rank {} misses a part: type {} with {} bytes and {} more, after type {} with "
          "{} more",
          part.rank(), part.type(), count, remaining, frame_.type, remaining_);
    }
    frame_.payload += part.payload();
  }
  // Parts without bytes would never end.
  if (remaining > 0 && count == 0) {
    return InvalidArgument("a part of a frame of rank {} is empty", part.rank());
  }
  remaining_ = remaining;
  begun_ = remaining > 0;
  if (begun_) return false;
  *frame = std::exchange(frame_, Frame());
  return true;
}

}  // namespace nibble::comm
