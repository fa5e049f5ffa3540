// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One UCX worker with its context and its endpoints: the port it listens on, progress, sleep, and
// an end that leaves nothing behind. Used by one thread at a time.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "comm/tcp/ucx_library.h"

namespace nibble::comm {

class UcxWorker {
 public:
  // Listens on `bind_address` and a free port.
  static absl::StatusOr<std::unique_ptr<UcxWorker>> Open(const std::string& bind_address);
  // Forgets what is under way.
  ~UcxWorker();
  UcxWorker(const UcxWorker&) = delete;
  UcxWorker& operator=(const UcxWorker&) = delete;

  const UcxLibrary& ucx() const { return ucx_; }
  ucp_worker_h get() const { return worker_; }
  const std::string& address() const { return address_; }  // for ConnectTo
  uint16_t port() const { return port_; }

  // `on_error(argument, ...)` is called while it progresses, once the peer is gone. The endpoint is
  // closed with the worker.
  absl::StatusOr<ucp_ep_h> ConnectTo(const std::string& address, ucp_err_handler_cb_t on_error,
                                     void* argument);
  // From now on connections from outside are not answered; those that exist go on.
  void StopListening();
  // True when something moved.
  bool Progress() { return ucx_.worker_progress(worker_) != 0; }
  // Until something can move, `wake_fd` is readable, or `limit` has passed.
  void Sleep(int wake_fd, std::chrono::nanoseconds limit);
  // Ends all connections: what was sent goes out first, for at most `flush`.
  void CloseEndpoints(std::chrono::milliseconds flush);

 private:
  explicit UcxWorker(const UcxLibrary& ucx) : ucx_(ucx) {}
  absl::Status Create(const std::string& interface, bool is_ipv6);
  absl::Status FindListener(const std::string& bind_address, const std::vector<int>& not_these);

  const UcxLibrary& ucx_;
  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  int event_fd_ = -1;   // the worker's
  int listen_fd_ = -1;  // the worker's
  uint16_t port_ = 0;
  std::string address_;
  std::vector<ucp_ep_h> endpoints_;
};

}  // namespace nibble::comm
