// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/grpc/connection_acceptor.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "base/log.h"

namespace nibble::server {
namespace {

using std::chrono::steady_clock;

constexpr int kBacklog = 4096;  // the kernel lowers it to net.core.somaxconn
// Looking at 16384 descriptors takes milliseconds: not for every one that is refused.
constexpr std::chrono::milliseconds kLookPeriod{100};
constexpr std::chrono::milliseconds kRetry{100};
constexpr std::chrono::seconds kWarnPeriod{10};
constexpr int kAcceptTurn = 256;

std::string ErrorText(int error) { return std::generic_category().message(error); }

void SetOption(int fd, int level, int name, int value) {
  ::setsockopt(fd, level, name, &value, sizeof(value));
}

struct FreeAddress {
  void operator()(addrinfo* info) const { ::freeaddrinfo(info); }
};

// 0: not a socket that is open.
uint64_t InodeOf(int fd) {
  struct stat file = {};
  return ::fstat(fd, &file) == 0 && S_ISSOCK(file.st_mode) ? file.st_ino : 0;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ConnectionAcceptor>> ConnectionAcceptor::Listen(
    const std::string& host, int port, int64_t max_connections) {
  std::unique_ptr<ConnectionAcceptor> acceptor(new ConnectionAcceptor(max_connections));
  NIBBLE_RETURN_IF_ERROR(acceptor->Bind(host, port));
  return acceptor;
}

absl::Status ConnectionAcceptor::Bind(const std::string& host, int port) {
  const auto failed = [&](const std::string& why) {
    return Unavailable("cannot serve gRPC on {} port {}: {}", host, port, why);
  };
  const addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE,
                          .ai_family = AF_UNSPEC,
                          .ai_socktype = SOCK_STREAM,
                          .ai_protocol = IPPROTO_TCP,
                          .ai_addrlen = 0,
                          .ai_addr = nullptr,
                          .ai_canonname = nullptr,
                          .ai_next = nullptr};
  std::string address = host == "localhost" ? "127.0.0.1" : host;
  if (address.size() > 2 && address.front() == '[' && address.back() == ']') {
    address = address.substr(1, address.size() - 2);
  }
  addrinfo* found = nullptr;
  if (const int error =
          ::getaddrinfo(address.c_str(), std::to_string(port).c_str(), &hints, &found);
      error != 0) {
    return failed(::gai_strerror(error));
  }
  const std::unique_ptr<addrinfo, FreeAddress> info(found);
  wake_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  listener_ = ::socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (wake_ < 0 || listener_ < 0) return failed(ErrorText(errno));
  SetOption(listener_, SOL_SOCKET, SO_REUSEADDR, 1);
  if (info->ai_family == AF_INET6) SetOption(listener_, IPPROTO_IPV6, IPV6_V6ONLY, 0);
  sockaddr_in6 bound = {};  // holds either kind
  socklen_t size = sizeof(bound);
  if (::bind(listener_, info->ai_addr, info->ai_addrlen) != 0 ||
      ::listen(listener_, kBacklog) != 0 ||
      ::getsockname(listener_, reinterpret_cast<sockaddr*>(&bound), &size) != 0) {
    return failed(ErrorText(errno));
  }
  port_ = ntohs(bound.sin6_port);  // where sin_port is
  return absl::OkStatus();
}

ConnectionAcceptor::~ConnectionAcceptor() {
  Stop();
  for (const int fd : {listener_, wake_}) {
    if (fd >= 0) ::close(fd);
  }
}

void ConnectionAcceptor::Start(std::function<void(int fd)> take) {
  take_ = std::move(take);
  thread_ = std::thread([this] { Run(); });
}

void ConnectionAcceptor::Stop() {
  if (thread_.joinable()) {
    ::eventfd_write(wake_, 1);
    thread_.join();
  }
  if (listener_ >= 0) ::close(std::exchange(listener_, -1));
}

void ConnectionAcceptor::Run() {
  for (;;) {
    pollfd waits[] = {{.fd = wake_, .events = POLLIN, .revents = 0},
                      {.fd = listener_, .events = POLLIN, .revents = 0}};
    if (::poll(waits, 2, -1) < 0 && errno != EINTR) return Warn(ErrorText(errno));
    if (waits[0].revents != 0) return;
    if (waits[1].revents != 0) Accept();
  }
}

void ConnectionAcceptor::Accept() {
  for (int i = 0; i < kAcceptTurn; ++i) {
    const int fd = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
      if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) return;
      // Out of file descriptors, most likely: the backlog stays readable, so an immediate retry
      // would spin.
      Warn(ErrorText(errno));
      pollfd wake = {.fd = wake_, .events = POLLIN, .revents = 0};
      ::poll(&wake, 1, static_cast<int>(kRetry.count()));
      return;
    }
    if (!HasRoom()) {
      ::close(fd);
      Warn(fmt::format("the limit is {} (--max-connections)", max_connections_));
      continue;
    }
    SetOption(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    {
      const std::lock_guard lock(mutex_);
      connections_.push_back({.fd = fd, .inode = InodeOf(fd)});
    }
    take_(fd);
  }
}

bool ConnectionAcceptor::HasRoom() {
  const std::lock_guard lock(mutex_);
  const auto full = [this] {
    return static_cast<int64_t>(connections_.size()) >= max_connections_;
  };
  const auto now = steady_clock::now();
  if (full() && now - last_look_ >= kLookPeriod) {
    ForgetClosed();
    last_look_ = now;
  }
  return !full();
}

void ConnectionAcceptor::ForgetClosed() {
  // A descriptor that was given again is in the list twice, with two inodes: one is gone.
  std::erase_if(connections_, [](const Connection& connection) {
    return InodeOf(connection.fd) != connection.inode;
  });
}

int64_t ConnectionAcceptor::num_connections() {
  const std::lock_guard lock(mutex_);
  ForgetClosed();
  return static_cast<int64_t>(connections_.size());
}

void ConnectionAcceptor::Warn(const std::string& why) {
  const auto now = steady_clock::now();
  if (last_warning_ != steady_clock::time_point() && now - last_warning_ < kWarnPeriod) return;
  last_warning_ = now;
  log::Warning("gRPC: connections are refused: {}", why);
}

}  // namespace nibble::server
