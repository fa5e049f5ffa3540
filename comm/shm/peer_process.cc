// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/shm/peer_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "fmt/core.h"

namespace nibble::comm::shm {
namespace {

// By its state in /proc, as a zombie still takes signals.
bool GoneByNumber(pid_t pid) {
  if (kill(pid, 0) != 0 && errno == ESRCH) return true;
  const int fd = open(fmt::format("/proc/{}/stat", pid).c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno == ENOENT;
  char text[512];
  const ssize_t length = read(fd, text, sizeof(text) - 1);
  close(fd);
  if (length <= 0) return false;
  text[length] = '\0';
  // "pid (name) state ...": the name may hold parentheses.
  const char* const name_end = std::strrchr(text, ')');
  return name_end != nullptr && name_end[1] == ' ' && (name_end[2] == 'Z' || name_end[2] == 'X');
}

}  // namespace

PeerProcess::PeerProcess(pid_t pid)
    : pid_(pid), pidfd_(static_cast<int>(syscall(SYS_pidfd_open, pid, 0))) {
  gone_at_first_ = pidfd_ < 0 && errno == ESRCH;
}

PeerProcess::~PeerProcess() {
  if (pidfd_ >= 0) close(pidfd_);
}

PeerProcess::PeerProcess(PeerProcess&& other) noexcept { *this = std::move(other); }

PeerProcess& PeerProcess::operator=(PeerProcess&& other) noexcept {
  std::swap(pid_, other.pid_);
  std::swap(pidfd_, other.pidfd_);
  std::swap(gone_at_first_, other.gone_at_first_);
  return *this;
}

bool PeerProcess::Gone() const {
  if (pid_ == 0) return false;
  if (gone_at_first_) return true;
  if (pidfd_ < 0) return GoneByNumber(pid_);
  pollfd poll_fd{.fd = pidfd_, .events = POLLIN, .revents = 0};  // readable once it has ended
  return poll(&poll_fd, 1, 0) > 0;
}

}  // namespace nibble::comm::shm
