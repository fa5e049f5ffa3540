// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A connection that a test can cut: forwards TCP from a port of its own to another one of this
// host. While it is cut, what is sent goes nowhere and nobody is told, as when a cable is pulled.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <thread>
#include <utility>
#include <vector>

namespace nibble::comm {

class TcpProxy {
 public:
  // `source_host`: the last byte of the address 127.0.0.x that the target sees.
  explicit TcpProxy(int target_port, uint8_t source_host = 1)
      : source_host_(source_host), target_port_(target_port) {
    listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    sockaddr_in address = Loopback(0);
    socklen_t length = sizeof address;
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    if (::bind(listener_, generic, length) == 0 && ::listen(listener_, 16) == 0 &&
        ::getsockname(listener_, generic, &length) == 0) {
      port_ = ntohs(address.sin_port);
    }
    thread_ = std::thread([this] { Loop(); });
  }
  ~TcpProxy() {
    stop_ = true;
    thread_.join();
    Drop();
    ::close(listener_);
  }

  int port() const { return port_; }
  void Cut() { cut_ = true; }
  // Connections from before stay dead, new ones go to `target_port`.
  void Heal(int target_port) {
    target_port_ = target_port;
    drop_ = true;
    cut_ = false;
  }

 private:
  static sockaddr_in Loopback(int port, uint8_t host = 1) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl((127U << 24) | host);
    return address;
  }

  void Loop() {
    while (!stop_) {
      if (drop_.exchange(false)) Drop();
      std::vector<pollfd> files;
      if (!cut_) {
        files.push_back({.fd = listener_, .events = POLLIN, .revents = 0});
        for (const auto& [a, b] : pairs_) {
          files.push_back({.fd = a, .events = POLLIN, .revents = 0});
          files.push_back({.fd = b, .events = POLLIN, .revents = 0});
        }
      }
      if (::poll(files.data(), files.size(), 2) <= 0) continue;
      if (cut_) continue;
      std::vector<std::pair<int, int>> dead;
      for (size_t i = 0; i < pairs_.size(); ++i) {
        const auto [a, b] = pairs_[i];
        if ((files[1 + 2 * i].revents != 0 && !Forward(a, b)) ||
            (files[2 + 2 * i].revents != 0 && !Forward(b, a))) {
          dead.push_back(pairs_[i]);
        }
      }
      for (const auto& pair : dead) {
        Close(pair);
        std::erase(pairs_, pair);
      }
      if (files[0].revents != 0) Accept();
    }
  }

  void Accept() {
    const int from = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (from < 0) return;
    const int to = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const sockaddr_in source = Loopback(0, source_host_);
    const sockaddr_in address = Loopback(target_port_);
    if (::bind(to, reinterpret_cast<const sockaddr*>(&source), sizeof source) != 0 ||
        ::connect(to, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
      return Close({from, to});
    }
    pairs_.emplace_back(from, to);
  }

  static bool Forward(int from, int to) {
    std::array<char, 65536> bytes;
    const ssize_t received = ::recv(from, bytes.data(), bytes.size(), 0);
    ssize_t sent = 0;
    while (sent < received) {
      const ssize_t now =
          ::send(to, bytes.data() + sent, static_cast<size_t>(received - sent), MSG_NOSIGNAL);
      if (now < 0) return false;
      sent += now;
    }
    return received > 0;
  }

  static void Close(const std::pair<int, int>& pair) {
    ::close(pair.first);
    ::close(pair.second);
  }
  void Drop() {
    for (const auto& pair : pairs_) Close(pair);
    pairs_.clear();
  }

  const uint8_t source_host_;
  std::atomic<int> target_port_;
  std::atomic<bool> cut_{false};
  std::atomic<bool> drop_{false};
  std::atomic<bool> stop_{false};
  int listener_ = -1;
  int port_ = 0;
  std::vector<std::pair<int, int>> pairs_;  // the thread's own
  std::thread thread_;
};

}  // namespace nibble::comm
