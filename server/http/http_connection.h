// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One client connection on one io thread, and what connections of a server share. Private to
// server/http.
//
//   kReading --request complete--> kAnswering --answer out--> kReading (keep-alive)
//      |                               |                  \-> kLingering --> kClosed
//      \--- malformed, too large: an answer of our own, then kLingering
//
// Invariants
//  1. Everything runs on the thread of `io`, one handler at a time.
//  2. Until kClosed a wait for input is always pending, so a client that leaves is noticed while
//     its answer is computed. What arrives meanwhile is kept (pipelining) up to 64 KiB; beyond it
//     the wait rests (input_rests_), the client's bytes stay in the kernel, and only its leaving is
//     looked for, once a second.
//  3. A connection is in io->connections from Start to Close, which drops it from there.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "boost/asio/io_context.hpp"
#include "boost/asio/ip/tcp.hpp"
#include "boost/asio/steady_timer.hpp"

#include "server/http/http_exchange.h"
#include "server/http/http_format.h"

namespace nibble::server {

// Written before Start, then read by all threads, but for the atomics.
struct ServerState {
  using Routes = std::map<std::string, std::map<std::string, HttpHandler>>;
  // The path's own route, else that of the nearest "/*" above it.
  Routes::const_iterator FindRoute(const std::string& path) const;

  HttpServerConfig config;
  Routes routes;  // path -> method -> handler
  HttpObserver observer;
  std::shared_ptr<const HttpErrorBody> error_body;
  std::atomic<bool> draining{false};
  std::atomic<int64_t> num_connections{0};
  std::atomic<int64_t> buffered_bytes{0};
  std::atomic<int64_t> last_accept_failure_ns{std::numeric_limits<int64_t>::min()};
};

// What one connection or request holds of ServerState::buffered_bytes.
class BufferShare {
 public:
  explicit BufferShare(std::shared_ptr<ServerState> server) : server_(std::move(server)) {}
  ~BufferShare() { Set(0); }
  BufferShare(const BufferShare&) = delete;
  BufferShare& operator=(const BufferShare&) = delete;
  int64_t bytes() const { return bytes_; }
  void Set(int64_t bytes) {
    server_->buffered_bytes.fetch_add(bytes - bytes_);
    bytes_ = bytes;
  }

 private:
  const std::shared_ptr<ServerState> server_;
  int64_t bytes_ = 0;
};

class Connection;

class IoThread final : public ConnectionLoop {
 public:
  bool Post(std::function<void()> task) override;
  // No post is taken from now on.
  void RefusePosts();

  boost::asio::io_context context{1};
  // This thread's only:
  std::unordered_set<std::shared_ptr<Connection>> connections;
  int num_refusing = 0;  // connections over the limit that are being told so
  std::vector<char> scratch = std::vector<char>(size_t{64} << 10);  // where sockets are read into

 private:
  std::mutex mutex_;
  bool refuse_posts_ = false;  // guarded by mutex_
};

class Connection final : public std::enable_shared_from_this<Connection>, public ExchangeOwner {
 public:
  Connection(boost::asio::ip::tcp::socket socket, std::shared_ptr<IoThread> io,
             std::shared_ptr<ServerState> server);
  ~Connection() override;

  // Takes its place in io->connections and begins to read; over the connection limit it answers 503
  // to whatever comes.
  void Start();
  void CloseIfIdle();
  void Close();

 private:
  enum class State { kReading, kAnswering, kLingering, kClosed };
  struct Request;  // the message being parsed; Beast's types stay in the source

  void WaitForInput();
  void OnInput();
  void OnInputEnd();
  // While an answer is under way: is there as much input as we keep?
  bool HasReadAhead() const;
  void RestInput();
  void WatchForEnd();
  void ResumeInput();
  // False: the request was refused, because all requests together hold too much.
  bool TakeInput(size_t size);
  void ParseInput();
  void DropInput();
  bool CheckHeader();  // false: it was refused
  void Dispatch();
  // Answers with the server's own error and ends the connection.
  void Refuse(int status, const std::string& message);
  void BeginAnswer(Exchange::Info info);
  void SendError(int status, const std::string& message, const HttpHeaders& headers);

  void OnExchangeReady() override;
  void WriteNext();
  void Abort();
  void WriteSome();
  void OnAnswerDone(bool close);
  void Observe();
  void Linger();

  void SetDeadline(std::chrono::seconds from_now);
  void ClearDeadline();
  void WaitForTimer();
  void OnTimeout();

  boost::asio::ip::tcp::socket socket_;
  boost::asio::steady_timer timer_;
  boost::asio::steady_timer rest_timer_;
  const std::shared_ptr<IoThread> io_;
  const std::shared_ptr<ServerState> server_;
  std::string remote_address_;
  State state_ = State::kReading;
  bool counted_ = false;        // in num_connections; else in io_->num_refusing
  bool input_open_ = true;      // the client has not closed its side
  bool discard_input_ = false;  // an answer that ends the connection is going out
  std::chrono::steady_clock::time_point deadline_ = std::chrono::steady_clock::time_point::max();
  bool timer_pending_ = false;

  std::string input_;        // from input_offset_ on: bytes not parsed yet
  size_t input_offset_ = 0;  // moved on instead of erasing: pipelined requests are many and small
  bool input_rests_ = false;
  BufferShare share_;                 // of the request being read and of input_
  std::unique_ptr<Request> request_;  // null between requests: an idle connection holds no buffer
  std::shared_ptr<Exchange> exchange_;
  std::string output_;  // being written
  size_t output_offset_ = 0;
  bool writing_ = false;
};

}  // namespace nibble::server
