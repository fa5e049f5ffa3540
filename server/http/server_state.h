// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the connections of a server share, and what those of one io thread do. Private to
// server/http.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <limits>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "boost/asio/io_context.hpp"

#include "server/http/http_exchange.h"
#include "server/http/http_server.h"
#include "server/request_log/request_id.h"

namespace nibble::server {

// What happens often is told once for a row of it on all threads, however long: ten lines a second
// help nobody.
class LogRow {
 public:
  bool Begins();  // this is the first one for ten seconds

 private:
  std::atomic<int64_t> last_ns_{std::numeric_limits<int64_t>::min()};
};

// Written before Start, then read by all threads, but for the atomics.
struct ServerState {
  using Routes = std::map<std::string, std::map<std::string, HttpHandler>>;
  // The path's own route, else that of the nearest "/*" above it.
  Routes::const_iterator FindRoute(const std::string& path) const;
  // For the Allow header of a path.
  static std::string AllowedMethods(const std::map<std::string, HttpHandler>& methods);

  HttpServerConfig config;
  Routes routes;  // path -> method -> handler
  HttpObserver observer;
  HttpGuard guard;
  std::shared_ptr<const HttpErrorBody> error_body;
  RequestIds request_ids;
  std::atomic<bool> draining{false};
  std::atomic<int64_t> num_connections{0};
  std::atomic<int64_t> buffered_bytes{0};
  // Of answers that clients have not taken; see HttpServerConfig::max_queued_bytes.
  const std::shared_ptr<std::atomic<int64_t>> queued_bytes =
      std::make_shared<std::atomic<int64_t>>(0);
  LogRow accept_failures;
  LogRow crowded_handshakes;
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

// Connections over the limit that are being told so, per thread.
inline constexpr int kMaxRefusing = 64;

class Connection;

class IoThread final : public ConnectionLoop {
 public:
  bool Post(std::function<void()> task) override;
  // No post is taken from now on.
  void RefusePosts();

  boost::asio::io_context context{1};
  // This thread's only:
  std::unordered_set<std::shared_ptr<Connection>> connections;
  std::list<Connection*> handshakes;  // in progress, the oldest first
  int num_refusing = 0;               // connections over the limit that are being told so
  std::vector<char> scratch = std::vector<char>(size_t{64} << 10);  // where sockets are read into

 private:
  std::mutex mutex_;
  bool refuse_posts_ = false;  // guarded by mutex_
};

}  // namespace nibble::server
