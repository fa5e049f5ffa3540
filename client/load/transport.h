// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// How requests travel. One thread: whoever calls Poll.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

#include "client/load/request.h"

namespace nibble::client {

// Told from within Start, Poll and CancelAll.
class TransportEvents {
 public:
  virtual ~TransportEvents() = default;
  // Tokens came.
  virtual void OnChunk(size_t idx) = 0;
  virtual void OnFinishReason(size_t idx, std::string_view reason) = 0;
  virtual void OnUsage(size_t idx, int64_t prompt_tokens, int64_t output_tokens) = 0;
  // Once for each request: OK when the whole answer was there.
  virtual void OnEnd(size_t idx, const absl::Status& status) = 0;
};

class Transport {
 public:
  virtual ~Transport() = default;
  // Whom to tell; not while requests are active.
  void SetEvents(TransportEvents* events) { events_ = events; }
  virtual void Start(size_t idx, const LoadRequest& request) = 0;
  // Handles some of what is there; waits for it until `deadline_ns` of Clock::Monotonic().
  virtual void Poll(int64_t deadline_ns) = 0;
  // Ends what is active, each with CANCELLED, now or in the next Polls.
  virtual void CancelAll() = 0;
  // See HttpStreams: for how long what arrives waits for this thread.
  virtual std::vector<int64_t> TakeWakeDelays() = 0;
  // See HttpStreams: requests that were sent a second time.
  virtual int64_t TakeResends() { return 0; }

 protected:
  TransportEvents* events_ = nullptr;
};

}  // namespace nibble::client
