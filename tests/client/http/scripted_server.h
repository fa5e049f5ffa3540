// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A server that sends exactly the bytes it is told to, for testing clients against what good
// servers never do.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace nibble::client::testing {

inline std::string Answer(const std::string& body, const std::string& headers = "") {
  return "HTTP/1.1 200 OK\r\n" + headers + "Content-Length: " + std::to_string(body.size()) +
         "\r\n\r\n" + body;
}

// A connection of a client. Reads end at the end of the stream, or after ten seconds of silence.
class Peer {
 public:
  Peer(int fd, int connection_idx) : idx(connection_idx), fd_(fd) {}
  ~Peer() { Close(); }
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;

  // A request's head and body; empty at the end.
  std::string ReadRequest() {
    const auto whole = [&]() -> size_t {
      const size_t end = buffer_.find("\r\n\r\n");
      if (end == std::string::npos) return 0;
      const size_t length = buffer_.substr(0, end).find("Content-Length: ");
      const size_t body =
          length == std::string::npos ? 0 : std::stoul(buffer_.substr(length + 16, 20));
      return buffer_.size() >= end + 4 + body ? end + 4 + body : 0;
    };
    while (whole() == 0) {
      if (!Fill()) return "";
    }
    const size_t size = whole();
    std::string request = buffer_.substr(0, size);
    buffer_.erase(0, size);
    return request;
  }
  void Send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return;
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
  }
  void WaitForEnd() {
    while (Fill()) {
    }
  }
  void Close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }

  const int idx;  // 0 for the first connection

 private:
  bool Fill() {
    pollfd wait = {.fd = fd_, .events = POLLIN, .revents = 0};
    if (::poll(&wait, 1, 10'000) <= 0) return false;
    char bytes[4096];
    const ssize_t got = ::recv(fd_, bytes, sizeof bytes, 0);
    if (got <= 0) return false;
    buffer_.append(bytes, static_cast<size_t>(got));
    return true;
  }

  int fd_;
  std::string buffer_;
};

// Each connection has a thread that does what `script` says; it is closed when that returns.
class ScriptedServer {
 public:
  explicit ScriptedServer(std::function<void(Peer&)> script) : script_(std::move(script)) {
    listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    auto* const any = reinterpret_cast<sockaddr*>(&address);
    if (::bind(listener_, any, size) == 0 && ::listen(listener_, 16) == 0 &&
        ::getsockname(listener_, any, &size) == 0) {
      port_ = ntohs(address.sin_port);
    }
    acceptor_ = std::thread([this] { Accept(); });
  }
  ~ScriptedServer() {
    ::shutdown(listener_, SHUT_RDWR);
    acceptor_.join();
    for (std::thread& thread : threads_) thread.join();
    ::close(listener_);
  }
  ScriptedServer(const ScriptedServer&) = delete;
  ScriptedServer& operator=(const ScriptedServer&) = delete;

  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }
  int num_connections() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return num_connections_;
  }

 private:
  void Accept() {
    for (;;) {
      const int fd = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (fd < 0) return;
      const std::lock_guard<std::mutex> lock(mutex_);
      threads_.emplace_back([this, fd, idx = num_connections_++] {
        Peer peer(fd, idx);
        script_(peer);
      });
    }
  }

  const std::function<void(Peer&)> script_;
  int listener_ = -1;
  int port_ = 0;
  std::thread acceptor_;
  std::mutex mutex_;
  int num_connections_ = 0;           // guarded by mutex_
  std::vector<std::thread> threads_;  // of the acceptor, then of the destructor
};

}  // namespace nibble::client::testing
