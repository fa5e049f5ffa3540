// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Ranks that are processes of the test.
#pragma once

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <string>

#include "gtest/gtest.h"

namespace nibble::comm {

// Runs body() in a forked process. REQUIRES that this process has no other threads.
class ChildProcess {
 public:
  explicit ChildProcess(const std::function<std::string()>& body) {
    int ends[2];
    EXPECT_EQ(pipe(ends), 0);
    pid_ = fork();
    EXPECT_GE(pid_, 0);
    if (pid_ == 0) {
      close(ends[0]);
      const std::string result = body();
      const bool written =
          write(ends[1], result.data(), result.size()) == static_cast<ssize_t>(result.size());
      _exit(written ? 0 : 1);
    }
    close(ends[1]);
    result_ = ends[0];
  }
  ~ChildProcess() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    close(result_);
  }
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  pid_t pid() const { return pid_; }
  // What body() returned; empty when the process died first.
  std::string Result() const {
    std::string result;
    char text[1024];
    pollfd poll_fd{.fd = result_, .events = POLLIN, .revents = 0};
    while (poll(&poll_fd, 1, 120'000) > 0) {
      const ssize_t length = read(result_, text, sizeof(text));
      if (length <= 0) return result;
      result.append(text, static_cast<size_t>(length));
    }
    return "no result within 120 s";
  }

 private:
  pid_t pid_ = 0;
  int result_ = -1;
};

}  // namespace nibble::comm
