// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One request's answer on its way from any thread to the connection's thread.
//
//   handler, engine, ... --HttpResponder--> Exchange (mutex, outbox) --post--> Connection (io
//   thread)
//
// Invariants
//  1. The connection is named only on its own thread (connection_); other threads reach it by
//  posting
//     to its ConnectionLoop, which refuses posts once the server stops. So an answer that outlives
//     its connection, or the server, writes into nothing.
//  2. mutex_ is never held while a callback runs or is destroyed: callbacks own things that own us.
//  3. At most one wake-up is in flight (wake_posted_): a burst of small writes costs one post.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "server/http/http_server.h"

namespace nibble::server {

// The event loop of one io thread, as seen from other threads.
class ConnectionLoop {
 public:
  virtual ~ConnectionLoop() = default;
  // Runs `task` on the loop's thread, later. False, without running it ever, once the loop stops.
  virtual bool Post(std::function<void()> task) = 0;
};

// What an exchange asks of its connection, on the connection's thread.
class ExchangeOwner {
 public:
  virtual ~ExchangeOwner() = default;
  virtual void OnExchangeReady() = 0;  // Take() has something new
};

class Exchange final : public std::enable_shared_from_this<Exchange> {
 public:
  struct Info {
    std::string route;  // "none" when no handler was found
    std::string method;
    bool head_only = false;  // HEAD: headers, no body
    bool http_1_0 = false;   // no chunked bodies
    bool keep_alive = true;  // what client and server state allow
    std::chrono::steady_clock::time_point start;
    std::string request_id;
    std::shared_ptr<RequestTrace> trace;
    std::shared_ptr<const HttpErrorBody> error_body;
    // Of all exchanges of a server together, and what it may be.
    std::shared_ptr<std::atomic<int64_t>> all_queued_bytes;
    int64_t max_queued_bytes = 0;
  };

  // `owner` must call Detach() before it goes away.
  Exchange(Info info, std::shared_ptr<ConnectionLoop> loop, ExchangeOwner* owner);

  // The responder handed to a handler. Its destructor tells us when nobody will answer any more.
  std::shared_ptr<HttpResponder> MakeResponder();

  // From any thread; see HttpResponder.
  void Send(int status, std::string_view content_type, std::string body,
            const HttpHeaders& headers);
  void StartStream(int status, std::string_view content_type, const HttpHeaders& headers);
  void Write(std::string_view chunk);
  void EndStream();
  int64_t queued_bytes() const;
  void OnDisconnect(std::function<void()> callback);
  void OnResponderDropped();

  // From the connection's thread only.
  struct Taken {
    std::string bytes;
    bool finished = false;  // nothing comes after `bytes`
    bool close = false;     // after the answer, close
  };
  Taken Take();
  void OnSent(size_t num_bytes);
  // The connection is going away, or the answer is out. Runs the disconnect callback if the answer
  // was not complete.
  void Detach();
  const Info& info() const { return info_; }
  bool complete() const;  // the whole answer was queued
  bool aborted() const;   // the answer will never be whole: close without its end
  int status() const;     // 0 before there is one

 private:
  enum class State { kOpen, kStreaming, kFinished, kAborted };

  void Wake();  // REQUIRES: mutex_ not held
  bool HasRoomFor(int64_t queued, int64_t more) const;
  void AddQueuedLocked(int64_t num_bytes);
  bool AppendLocked(std::string_view);  // true: the caller must Wake()

  const Info info_;
  const std::shared_ptr<ConnectionLoop> loop_;
  ExchangeOwner* owner_;  // connection's thread only; null after Detach

  mutable std::mutex mutex_;  // guards all below
  State state_ = State::kOpen;
  bool detached_ = false;
  bool wake_posted_ = false;
  bool close_ = false;  // the connection ends with this answer
  int status_ = 0;
  std::string outbox_;
  std::string large_body_;    // after outbox_: moved, not copied
  int64_t queued_bytes_ = 0;  // both, and what Take() gave and OnSent() has not confirmed
  std::function<void()> on_disconnect_;
};

}  // namespace nibble::server
