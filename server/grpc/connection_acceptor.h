// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Accepts connections for a gRPC server, so many and no more: gRPC 1.51 has no limit of its own,
// but takes connections that somebody else has accepted. They are gRPC's from then on, and it does
// not say when it closes one. So their descriptors are looked at when the limit is reached: one
// that is closed, or is another socket by now, is none any more.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"

namespace nibble::server {

class ConnectionAcceptor {
 public:
  // Binds and listens; port 0: any free one. UNAVAILABLE naming address and cause; `host` is an IP
  // address or localhost.
  static absl::StatusOr<std::unique_ptr<ConnectionAcceptor>> Listen(const std::string& host,
                                                                    int port,
                                                                    int64_t max_connections);
  ~ConnectionAcceptor();  // Stop()s
  ConnectionAcceptor(const ConnectionAcceptor&) = delete;
  ConnectionAcceptor& operator=(const ConnectionAcceptor&) = delete;

  int port() const { return port_; }
  // Gives accepted connections to `take`, which owns them, from a thread of its own. Once.
  void Start(std::function<void(int fd)> take);
  // No call of `take` from here on, and nobody can connect.
  void Stop();
  // Thread-safe: those that are open now, each looked at.
  int64_t num_connections();

 private:
  struct Connection {
    int fd = -1;
    uint64_t inode = 0;  // tells whether the descriptor is still that socket
  };

  explicit ConnectionAcceptor(int64_t max_connections) : max_connections_(max_connections) {}
  absl::Status Bind(const std::string& host, int port);
  void Run();
  void Accept();
  bool HasRoom();
  void ForgetClosed();  // REQUIRES mutex_
  void Warn(const std::string& why);

  const int64_t max_connections_;
  int listener_ = -1;
  int wake_ = -1;  // eventfd
  int port_ = 0;
  std::function<void(int fd)> take_;
  std::chrono::steady_clock::time_point last_look_{};     // the thread's only
  std::chrono::steady_clock::time_point last_warning_{};  // likewise
  std::mutex mutex_;
  std::vector<Connection> connections_;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace nibble::server
