// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/signal_watch.h"

#include <pthread.h>

#include <cstdlib>
#include <semaphore>
#include <thread>
#include <utility>

#include "base/log.h"
#include "server/cli/commands.h"

namespace nibble::cli {

SignalWatch::SignalWatch() {
  sigemptyset(&signals_);
  sigaddset(&signals_, SIGTERM);
  sigaddset(&signals_, SIGINT);
  sigaddset(&signals_, SIGHUP);
  pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
  std::signal(SIGPIPE, SIG_IGN);  // a client that went away is an error code, not a signal
  std::thread([this] { Watch(); }).detach();
}

std::stop_token SignalWatch::StartServing(const char* what) {
  serving_.store(what);
  return stop_.get_token();
}

void SignalWatch::OnHangup(std::function<void()> action) {
  const std::lock_guard lock(mutex_);
  on_hangup_ = std::move(action);
}

void SignalWatch::Watch() {
  for (bool draining = false;;) {
    int signal = 0;
    if (sigwait(&signals_, &signal) != 0) continue;
    if (signal == SIGHUP) {
      const std::lock_guard lock(mutex_);
      if (on_hangup_) {
        on_hangup_();
        continue;
      }
    }
    const char* name = signal == SIGINT ? "SIGINT" : signal == SIGHUP ? "SIGHUP" : "SIGTERM";
    const char* what = serving_.load();
    if (what == nullptr || draining) {
      PrintMessage(fmt::format("nibble: {} while {}: stopping at once\n", name,
                               draining ? "draining" : "loading"));
      std::_Exit(128 + signal);
    }
    log::Info("{}: {} (a second signal stops at once)", name, what);
    draining = true;
    stop_.request_stop();
  }
}

void WaitFor(const std::stop_token& stop) {
  std::binary_semaphore requested{0};
  const std::stop_callback callback(stop, [&] { requested.release(); });
  requested.acquire();
}

}  // namespace nibble::cli
