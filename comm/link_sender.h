// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One connection between two pipeline stages, and its sending end. What fits in shared memory is
// there when Send returns; everything else is copied and leaves on a thread of its own, which
// sleeps between messages.
//
//   rank 0 of the connection: LinkSender          rank 1: LinkReceiver (link_receiver.h)
//   shared memory             kBody               received by the thread that asks for it
//   network                   kSize, kBody        received ahead, before anybody asks
#pragma once

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
#include "comm/shm/segment.h"
#include "comm/stage_link.h"
#include "comm/transport.h"

namespace nibble::comm {

// Of two ranks: 0 sends, 1 receives.
struct LinkConnection {
  std::unique_ptr<ShmSegment> segment;  // of the transport; null for the network
  std::unique_ptr<Transport> transport;
  std::string peer_name;  // "rank 3"

  bool is_network() const { return segment == nullptr; }
};

enum LinkTag : uint64_t {
  kSize,  // uint64: values of the kBody that follows
  kBody,
};

// For the link with `peer_name`. RESOURCE_EXHAUSTED when the system has no more threads.
absl::Status StartThread(std::thread* thread, const std::string& peer_name,
                         std::function<void()> run);

class LinkSender {
 public:
  static absl::StatusOr<std::unique_ptr<LinkSender>> Create(LinkConnection connection,
                                                            std::chrono::nanoseconds timeout);
  ~LinkSender();
  LinkSender(const LinkSender&) = delete;
  LinkSender& operator=(const LinkSender&) = delete;

  absl::Status Send(const float* data, int64_t num_values);
  void Abort(const std::string& reason);

 private:
  using Buffer = std::vector<float>;

  LinkSender(LinkConnection connection, std::chrono::nanoseconds timeout);

  void Run();
  absl::Status SendNow(const Buffer& buffer);
  absl::Status WaitForBuffer(std::unique_lock<std::mutex>* lock);
  absl::Status BreakLocked(const absl::Status& status);

  const std::chrono::nanoseconds timeout_;
  LinkConnection connection_;  // used by thread_ while num_unsent_ > 0, else by Send under mutex_

  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_:
  int num_unsent_ = 0;
  absl::Status broken_;
  bool stopping_ = false;

  // A ring: number n % kMaxUnsent belongs to Send until it is counted in num_unsent_, then to
  // thread_.
  std::array<Buffer, StageLink::kMaxUnsent> buffers_;
  uint64_t num_filled_ = 0;  // Send's

  std::thread thread_;  // uses all of the above
};

}  // namespace nibble::comm
