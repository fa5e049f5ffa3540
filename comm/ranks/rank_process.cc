// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/ranks/rank_process.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <string_view>

#include "comm/ranks/local_ranks.h"

namespace nibble::comm {
namespace {

constexpr int kExecFailed = 127;  // as shells say it

// More than the default buffers a plan or a step's output at once; the kernel may give less.
constexpr int kSocketBufferBytes = 1 << 20;

// Everything that the child needs, prepared before the fork: between fork and exec only
// async-signal-safe calls are made, because other threads may have held any lock.
struct ChildPlan {
  pid_t parent = 0;
  int socket = -1;  // above kRankControlFd
  int null_file = -1;
  int max_descriptors = 0;
  char* const* argv = nullptr;
};

void ResetSignals() {
  struct sigaction action = {};
  for (int number = 1; number < NSIG; ++number) {
    action.sa_handler = number == SIGINT || number == SIGTERM ? SIG_IGN : SIG_DFL;
    ::sigaction(number, &action, nullptr);  // fails for SIGKILL, SIGSTOP and what libc keeps
  }
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
}

void CloseFrom(int first, int max_descriptors) {
  if (::close_range(static_cast<unsigned>(first), ~0U, 0) == 0) return;
  for (int fd = first; fd < max_descriptors; ++fd) ::close(fd);  // before Linux 5.9
}

[[noreturn]] void RunChild(const ChildPlan& plan) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  // It may have died before that.
  if (::getppid() != plan.parent) ::_exit(kExecFailed);
  if (::dup2(plan.null_file, STDIN_FILENO) < 0 || ::dup2(plan.socket, kRankControlFd) < 0) {
    ::_exit(kExecFailed);
  }
  CloseFrom(kRankControlFd + 1, plan.max_descriptors);
  ResetSignals();
  ::execv(plan.argv[0], plan.argv);
  constexpr std::string_view kMessage = "the program of a rank cannot be run\n";
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, kMessage.data(), kMessage.size());
  ::_exit(kExecFailed);
}

// The same file at a number above kRankControlFd, so that the child can move it there.
int MoveUp(int fd) {
  if (fd > kRankControlFd || fd < 0) return fd;
  const int moved = ::fcntl(fd, F_DUPFD_CLOEXEC, kRankControlFd + 1);
  ::close(fd);
  return moved;
}

pid_t Fork(const ChildPlan& plan) {
  // No handler of this process may run in the child.
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  const pid_t pid = ::fork();
  if (pid == 0) RunChild(plan);
  const int error = errno;
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  errno = error;
  return pid;
}

}  // namespace

absl::StatusOr<RankProcess> StartRankProcess(const std::vector<std::string>& argv) {
  std::vector<char*> arguments;
  arguments.reserve(argv.size() + 1);
  for (const std::string& argument : argv) {
    arguments.push_back(const_cast<char*>(argument.c_str()));
  }
  arguments.push_back(nullptr);

  int sockets[2] = {-1, -1};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0) {
    return ResourceExhausted("cannot make a socket pair for a rank: {}", std::strerror(errno));
  }
  for (int& socket : sockets) {
    ::setsockopt(socket, SOL_SOCKET, SO_SNDBUF, &kSocketBufferBytes, sizeof kSocketBufferBytes);
    socket = MoveUp(socket);
  }
  const int null_file = MoveUp(::open("/dev/null", O_RDWR | O_CLOEXEC));
  const long limit = ::sysconf(_SC_OPEN_MAX);
  const ChildPlan plan = {.parent = ::getpid(),
                          .socket = sockets[1],
                          .null_file = null_file,
                          .max_descriptors = static_cast<int>(std::clamp(limit, 1024L, 1L << 20)),
                          .argv = arguments.data()};
  const bool prepared = sockets[0] >= 0 && sockets[1] >= 0 && null_file >= 0;
  const pid_t pid = prepared ? Fork(plan) : -1;
  const int error = errno;
  if (null_file >= 0) ::close(null_file);
  if (sockets[1] >= 0) ::close(sockets[1]);
  if (pid < 0) {
    if (sockets[0] >= 0) ::close(sockets[0]);
    return ResourceExhausted("cannot start a process for a rank: {}", std::strerror(error));
  }
  ::fcntl(sockets[0], F_SETFL, O_RDWR | O_NONBLOCK);
  return RankProcess{.pid = pid, .socket = sockets[0]};
}

std::string DescribeEnd(int wait_status) {
  if (WIFSIGNALED(wait_status)) {
    const int number = WTERMSIG(wait_status);
    const char* name = ::sigabbrev_np(number);
    return name == nullptr ? fmt::format("killed by signal {}", number)
                           : fmt::format("killed by signal {} (SIG{})", number, name);
  }
  if (WEXITSTATUS(wait_status) == kExecFailed) {
    return fmt::format("exited with status {}: its program could not be run", kExecFailed);
  }
  return fmt::format("exited with status {}", WEXITSTATUS(wait_status));
}

}  // namespace nibble::comm
