// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A client that sends exactly the bytes it is told to, for testing what well-behaved clients never
// do.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <string_view>
#include <utility>

namespace nibble::server::testing {

class RawClient {
 public:
  // `receive_buffer_bytes` > 0 keeps the kernel from hiding a slow reader.
  explicit RawClient(int port, int receive_buffer_bytes = 0) {
    fd_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (receive_buffer_bytes > 0) {
      ::setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer_bytes, sizeof receive_buffer_bytes);
    }
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  }
  ~RawClient() { Close(); }
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  bool connected() const { return connected_; }

  // False once the server has reset the connection.
  bool Send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
    return true;
  }
  void HalfClose() { ::shutdown(fd_, SHUT_WR); }
  void Close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }
  // Closes with a reset instead of an orderly end.
  void Reset() {
    const linger option = {1, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &option, sizeof option);
    Close();
  }

  // Reads until `what` was seen (result includes all read so far), the end, or ten seconds of
  // silence. Bytes read beyond stay for the next call.
  std::string ReadUntil(std::string_view what) {
    for (;;) {
      const size_t found = buffer_.find(what);
      if (found != std::string::npos) {
        std::string result = buffer_.substr(0, found + what.size());
        buffer_.erase(0, found + what.size());
        return result;
      }
      if (!Fill()) return std::exchange(buffer_, std::string());
    }
  }
  std::string ReadAll() {
    while (Fill()) {
    }
    return std::exchange(buffer_, std::string());
  }
  // One response with Content-Length or chunked body; {head, decoded body}.
  std::pair<std::string, std::string> ReadResponse() {
    std::string head = ReadUntil("\r\n\r\n");
    std::string body;
    if (const size_t at = head.find("Content-Length: "); at != std::string::npos) {
      const size_t size = std::stoul(head.substr(at + 16));
      while (buffer_.size() < size && Fill()) {
      }
      body = buffer_.substr(0, size);
      buffer_.erase(0, size);
    } else if (head.find("Transfer-Encoding: chunked") != std::string::npos) {
      for (;;) {
        const std::string line = ReadUntil("\r\n");
        if (line.size() < 3) break;
        const size_t size = std::stoul(line, nullptr, 16);
        while (buffer_.size() < size + 2 && Fill()) {
        }
        body += buffer_.substr(0, size);
        buffer_.erase(0, size + 2);
        if (size == 0) break;
      }
    }
    return {std::move(head), std::move(body)};
  }
  // What is there or comes within ten seconds.
  std::string ReadSome() {
    if (buffer_.empty()) Fill();
    return std::exchange(buffer_, std::string());
  }
  bool ended() const { return ended_; }
  // True when the server ends the connection (orderly or not) within ten seconds.
  bool AtEnd() {
    while (Fill()) {
    }
    return ended_;
  }

 private:
  bool Fill() {
    pollfd poll_fd = {fd_, POLLIN, 0};
    if (fd_ < 0 || ::poll(&poll_fd, 1, 10'000) <= 0) return false;
    char bytes[16384];
    const ssize_t size = ::recv(fd_, bytes, sizeof bytes, 0);
    if (size <= 0) {
      ended_ = true;
      return false;
    }
    buffer_.append(bytes, static_cast<size_t>(size));
    return true;
  }

  int fd_ = -1;
  bool connected_ = false;
  bool ended_ = false;
  std::string buffer_;
};

// Waits until `condition` holds; false after ten seconds.
template <typename Condition>
bool Eventually(Condition condition) {
  for (int i = 0; i < 2000; ++i) {
    if (condition()) return true;
    ::usleep(5000);
  }
  return false;
}

}  // namespace nibble::server::testing
