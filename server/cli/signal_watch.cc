// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/signal_watch.h"

#include <pthread.h>

#include <chrono>
#include <cstdlib>
#include <semaphore>
#include <thread>
#include <utility>

#include "base/log.h"
#include "server/cli/commands.h"

namespace nibble::cli {
namespace {

// `timeout` and container runtimes send a signal to the process and to its group: the second one
// is no wish of anybody's.
constexpr std::chrono::seconds kRepeat(1);

}  // namespace

SignalWatch::SignalWatch() {
  sigemptyset(&signals_);
  sigaddset(&signals_, SIGTERM);
  sigaddset(&signals_, SIGINT);
  sigaddset(&signals_, SIGHUP);
  pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
  std::signal(SIGPIPE, SIG_IGN);  // a client that went away is an error code, not a signal
  std::thread([this] { Watch(); }).detach();
}

std::stop_token SignalWatch::StartServing(std::string what) {
  const std::lock_guard lock(mutex_);
  serving_ = std::move(what);
  return stop_.get_token();
}

void SignalWatch::OnHangup(std::function<void()> action) {
  const std::lock_guard lock(mutex_);
  on_hangup_ = std::move(action);
}

bool SignalWatch::RunHangup() {
  const std::lock_guard lock(mutex_);
  if (on_hangup_) on_hangup_();
  return on_hangup_ != nullptr;
}

void SignalWatch::Watch() {
  using std::chrono::steady_clock;
  int first = 0;  // what began the draining
  steady_clock::time_point since;
  for (;;) {
    int signal = 0;
    if (sigwait(&signals_, &signal) != 0) continue;
    if (signal == SIGHUP && RunHangup()) continue;
    if (signal == first && steady_clock::now() - since < kRepeat) continue;
    const char* name = signal == SIGINT ? "SIGINT" : signal == SIGHUP ? "SIGHUP" : "SIGTERM";
    const std::string what = Serving();
    if (what.empty() || first != 0) {
      PrintMessage(fmt::format("nibble: {} while {}: stopping at once\n", name,
                               first != 0 ? "draining" : "loading"));
      std::_Exit(128 + signal);
    }
    log::Info("{}: {} (a second signal stops at once)", name, what);
    first = signal;
    since = steady_clock::now();
    stop_.request_stop();
  }
}

std::string SignalWatch::Serving() {
  const std::lock_guard lock(mutex_);
  return serving_;
}

void WaitFor(const std::stop_token& stop) {
  std::binary_semaphore requested{0};
  const std::stop_callback callback(stop, [&] { requested.release(); });
  requested.acquire();
}

}  // namespace nibble::cli
