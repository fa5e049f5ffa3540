// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// nibble serve
#include <pthread.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <semaphore>
#include <thread>

#include "base/log.h"
#include "server/cli/commands.h"
#include "server/cli/serving_stack.h"

namespace nibble::cli {
namespace {

// SIGTERM and SIGINT go to one watching thread: while loading they end the process (there is
// nothing to drain), then the first one starts draining and the second ends the process.
class SignalWatch {
 public:
  // Before any other thread starts: threads inherit the blocked signals.
  SignalWatch() {
    sigemptyset(&signals_);
    sigaddset(&signals_, SIGTERM);
    sigaddset(&signals_, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
    std::signal(SIGPIPE, SIG_IGN);  // a client that went away is an error code, not a signal
    std::thread([this] { Watch(); }).detach();
  }

  // Returns at the first signal.
  void WaitWhileServing() {
    serving_.store(true);
    drain_.acquire();
  }

 private:
  void Watch() {
    for (bool draining = false;;) {
      int signal = 0;
      if (sigwait(&signals_, &signal) != 0) continue;
      const char* name = signal == SIGINT ? "SIGINT" : "SIGTERM";
      if (!serving_.load() || draining) {
        PrintMessage(fmt::format("nibble: {} while {}: stopping at once\n", name,
                                 draining ? "draining" : "loading"));
        std::_Exit(128 + signal);
      }
      log::Info("{}: no new requests; finishing those in progress (a second signal stops at once)",
                name);
      draining = true;
      drain_.release();
    }
  }

  sigset_t signals_;
  std::atomic<bool> serving_{false};
  std::binary_semaphore drain_{0};
};

}  // namespace

int RunServe(const server::ServeConfig& config) {
  static SignalWatch watch;  // its thread runs as long as the process
  absl::StatusOr<std::unique_ptr<ServingStack>> stack = ServingStack::Start(config);
  if (!stack.ok()) return Fail(stack.status());
  PrintMessage((*stack)->Banner());
  watch.WaitWhileServing();
  const absl::Status drained = (*stack)->Shutdown(config.shutdown_timeout_seconds);
  if (drained.ok()) {
    log::Info("all requests are finished; bye");
  } else {
    log::Warning("--shutdown-timeout {} s is over, answers were cut off: {}",
                 config.shutdown_timeout_seconds, std::string(drained.message()));
  }
  return 0;
}

}  // namespace nibble::cli
