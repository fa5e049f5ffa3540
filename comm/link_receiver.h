// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The receiving end of a connection between two pipeline stages (link_sender.h).
#pragma once

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
#include "comm/link_sender.h"

namespace nibble::comm {

class LinkReceiver {
 public:
  static absl::StatusOr<std::unique_ptr<LinkReceiver>> Create(LinkConnection connection,
                                                              std::chrono::nanoseconds timeout);
  virtual ~LinkReceiver() = default;

  virtual absl::Status Receive(float* data, int64_t num_values) = 0;
  virtual void Abort(const std::string& reason) = 0;
};

// Over shared memory: bytes wait in the ring, and for the rest of a large message its sender's
// thread.
class DirectLinkReceiver final : public LinkReceiver {
 public:
  DirectLinkReceiver(LinkConnection connection, std::chrono::nanoseconds timeout);

  absl::Status Receive(float* data, int64_t num_values) override;
  void Abort(const std::string& reason) override { connection_.transport->Abort(reason); }

 private:
  const std::chrono::nanoseconds timeout_;
  LinkConnection connection_;
};

// Over a network, which carries bytes only while somebody takes them: a thread receives up to
// kMaxAhead messages while the stage computes.
class AheadLinkReceiver final : public LinkReceiver {
 public:
  static absl::StatusOr<std::unique_ptr<LinkReceiver>> Create(LinkConnection connection,
                                                              std::chrono::nanoseconds timeout);
  ~AheadLinkReceiver() override;

  absl::Status Receive(float* data, int64_t num_values) override;
  void Abort(const std::string& reason) override;

 private:
  static constexpr int kMaxAhead = 2;
  using Buffer = std::vector<float>;

  AheadLinkReceiver(LinkConnection connection, std::chrono::nanoseconds timeout);

  void Run();
  absl::Status ReceiveNext(Buffer* buffer);
  absl::Status Break(const absl::Status& status);

  const std::chrono::nanoseconds timeout_;
  LinkConnection connection_;  // thread_'s

  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_:
  int num_waiting_ = 0;
  absl::Status ended_;   // of thread_: nothing comes after what waits
  absl::Status broken_;  // nothing is given out any more
  bool stopping_ = false;

  // A ring: number n % kMaxAhead belongs to thread_ until it is counted in num_waiting_, then to
  // Receive.
  std::array<Buffer, kMaxAhead> buffers_;
  uint64_t num_taken_ = 0;  // Receive's

  std::thread thread_;  // uses all of the above
};

}  // namespace nibble::comm
