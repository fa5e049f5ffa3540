// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One NCCL communicator and its watchdog: a thread that asks for errors and for how far the device
// has come, and aborts the communicator at the first error, at the deadline or when told to. NCCL's
// kernels end by that and by nothing else; a thread for each, because one that waits in an abort
// may wait for another communicator's.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string>
#include <thread>

#include "base/cuda/stream.h"
#include "base/status.h"
#include "comm/communicator.h"
#include "comm/gpu/device_communicator.h"
#include "comm/gpu/nccl_library.h"

namespace nibble::comm {

class NcclSession {
 public:
  // Every rank calls; all succeed or all fail. The id travels through `host`. Forming it waits for
  // ranks that may be gone, and ends at the timeout or when options.stop says so.
  static absl::StatusOr<std::unique_ptr<NcclSession>> Create(
      const NcclLibrary* nccl, Communicator* host, const DeviceCommunicatorOptions& options);
  ~NcclSession();

  const NcclLibrary& library() const { return *nccl_; }

  // Calls enqueue(communicator) inside a group and waits, without blocking the watchdog, until NCCL
  // has taken it. One thread.
  absl::Status Run(const std::function<NcclResult(NcclComm*)>& enqueue);
  // From here on the deadline runs for what `stream` was given. Once for each operation.
  absl::Status Watch(cudaStream_t stream);

  // The first error. Never blocks longer than a call of NCCL.
  absl::Status Check();
  // Thread-safe.
  void Abort(const absl::Status& why);

 private:
  using Clock = std::chrono::steady_clock;

  NcclSession(const NcclLibrary* nccl, const DeviceCommunicatorOptions& options)
      : nccl_(nccl), device_(options.caps.index), timeout_(options.timeout), stop_(options.stop) {}
  absl::Status Start(const NcclUniqueId& id, int rank, int size);
  // While NCCL works on a call in the background.
  absl::Status Settle(NcclResult result);
  void WatchLoop();
  void LookOnce();
  void AbortLocked(const absl::Status& why);  // REQUIRES mutex_
  absl::Status ErrorOf(NcclResult result) const;

  const NcclLibrary* const nccl_;
  const int device_;
  const std::chrono::nanoseconds timeout_;
  const std::stop_token stop_;
  std::mutex mutex_;  // guards all below but the thread; held for each call of NCCL
  std::condition_variable changed_;
  NcclComm* comm_ = nullptr;  // null after an abort
  absl::Status broken_;
  bool stopping_ = false;
  // A point in the stream that is waited for until `deadline_`, and the last one behind it.
  gpu::Event watched_;
  gpu::Event last_;
  bool is_watching_ = false;
  bool has_last_ = false;
  Clock::time_point deadline_;
  std::thread watchdog_;
};

}  // namespace nibble::comm
