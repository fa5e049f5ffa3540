// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The sending side of a rank's socket: any thread sends, nobody waits. What the socket does not
// take at once is kept and goes when epoll says that there is room.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <span>

#include "comm/ranks/frame_stream.h"
#include "comm/ranks/rank_hub.h"

namespace nibble::comm {

// Thread-safe, but that Open, Receive, Flush and Close are called by the thread that waits on
// `epoll`.
class FrameSender {
 public:
  using Clock = std::chrono::steady_clock;

  // Sockets are watched with `key`: always for reading, for writing while something waits.
  FrameSender(int epoll, uint64_t key) : epoll_(epoll), key_(key) {}
  ~FrameSender() { Close(); }
  FrameSender(const FrameSender&) = delete;
  FrameSender& operator=(const FrameSender&) = delete;

  // Takes `socket`. REQUIRES that none is open.
  void Open(int socket);
  // What waits is lost. Nothing when none is open.
  void Close();
  // The peer reads an end of file once it has read the rest.
  void ShutDown();

  // recv(2) that does not wait, for the thread of Open and Close.
  ssize_t Receive(std::span<char> space);

  // Dropped when no socket is open, or the peer is gone, which its socket tells the reading side.
  // True when the frame waits.
  bool Send(Frame frame);
  void Flush();

  struct Waiting {
    size_t num_bytes = 0;
    Clock::time_point since;  // the peer took something, or had nothing to take
  };
  std::optional<Waiting> waiting() const;  // nothing when nothing waits

 private:
  struct Item {
    FrameHeader header;
    Frame frame;
    size_t sent = 0;  // bytes, the header counted

    size_t num_bytes() const { return header.size() + frame.payload.size(); }
  };

  bool SendSomeLocked(Item* item);  // true when all of it is gone
  void WatchLocked();

  const int epoll_;
  const uint64_t key_;
  mutable std::mutex mutex_;
  // Guarded by mutex_:
  int socket_ = -1;
  bool broken_ = false;  // the peer is gone
  bool watches_room_ = false;
  std::deque<Item> items_;
  size_t waiting_bytes_ = 0;
  Clock::time_point since_;
};

}  // namespace nibble::comm
