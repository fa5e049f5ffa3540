// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// SIGTERM and SIGINT of a process that serves: taken by one watching thread. While loading they end
// the process (there is nothing to drain), then the first one asks to stop and the second ends the
// process, unless it is the first one again within a second. SIGHUP does what OnHangup said, and
// without that the same as SIGTERM.
#pragma once

#include <csignal>
#include <functional>
#include <mutex>
#include <stop_token>
#include <string>

namespace nibble::cli {

class SignalWatch {
 public:
  // Before any other thread starts: threads inherit the blocked signals. Its thread runs as long as
  // the process: make it static.
  SignalWatch();
  SignalWatch(const SignalWatch&) = delete;
  SignalWatch& operator=(const SignalWatch&) = delete;

  // From now on there is something to drain. Stop is requested at the first signal, which the log
  // tells with `what` happens.
  std::stop_token StartServing(std::string what);

  // `action` is run on the watching thread.
  void OnHangup(std::function<void()> action);

 private:
  void Watch();
  bool RunHangup();  // false: nothing was said
  std::string Serving();

  sigset_t signals_;
  std::stop_source stop_;
  std::mutex mutex_;
  std::string serving_;              // what a signal does; empty: still loading. Guarded by mutex_
  std::function<void()> on_hangup_;  // guarded by mutex_
};

// Blocks until stop is requested.
void WaitFor(const std::stop_token& stop);

}  // namespace nibble::cli
