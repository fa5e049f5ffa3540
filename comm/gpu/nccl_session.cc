// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/gpu/nccl_session.h"

#include <utility>

#include "base/cuda/device.h"
#include "base/log.h"
#include "comm/gpu/agree.h"

namespace nibble::comm {
namespace {

// Between two looks of the watchdog, and of a caller at what NCCL does in the background.
constexpr std::chrono::milliseconds kLook{50};
constexpr std::chrono::microseconds kPoll{50};
// NCCL takes most calls sooner than a thread that sleeps is back, and a step has hundreds of them.
constexpr std::chrono::microseconds kNoSleep{200};
// For a communicator without faults to end in; it is aborted then.
constexpr std::chrono::seconds kFinalizeTimeout{5};

}  // namespace

absl::StatusOr<std::unique_ptr<NcclSession>> NcclSession::Create(
    const NcclLibrary* nccl, Communicator* host, const DeviceCommunicatorOptions& options) {
  std::unique_ptr<NcclSession> session(new NcclSession(nccl, options));
  NcclUniqueId id = {};
  absl::Status status;
  if (host->rank() == 0) status = session->ErrorOf(nccl->get_unique_id(&id));
  NIBBLE_RETURN_IF_ERROR(Agree(host, status));
  NIBBLE_RETURN_IF_ERROR(host->Broadcast(&id, sizeof(id), 0));
  NIBBLE_RETURN_IF_ERROR(Agree(host, session->Start(id, host->rank(), host->size())));
  return session;
}

absl::Status NcclSession::Start(const NcclUniqueId& id, int rank, int size) {
  NIBBLE_ASSIGN_OR_RETURN(watched_, gpu::Event::Create());
  NIBBLE_ASSIGN_OR_RETURN(last_, gpu::Event::Create());
  NcclConfig config;
  NcclResult result;
  {
    const std::lock_guard lock(mutex_);
    result = nccl_->comm_init_rank_config(&comm_, size, id, rank, &config);
  }
  NIBBLE_RETURN_IF_ERROR(Annotate(Settle(result), "forming NCCL's communicator"));
  watchdog_ = std::thread([this] { WatchLoop(); });
  return absl::OkStatus();
}

NcclSession::~NcclSession() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (watchdog_.joinable()) watchdog_.join();
  if (comm_ == nullptr) return;
  NcclResult state = nccl_->comm_finalize(comm_);
  const Clock::time_point end = Clock::now() + kFinalizeTimeout;
  while (state == NcclResult::kInProgress && Clock::now() < end) {
    std::this_thread::sleep_for(kPoll);
    if (nccl_->comm_get_async_error(comm_, &state) != NcclResult::kSuccess) break;
  }
  if (state == NcclResult::kSuccess) {
    (void)nccl_->comm_destroy(comm_);
  } else {
    (void)nccl_->comm_abort(comm_);
  }
}

absl::Status NcclSession::Settle(NcclResult result) {
  const Clock::time_point begin = Clock::now();
  for (;;) {
    Clock::duration waited;
    {
      const std::lock_guard lock(mutex_);
      if (!broken_.ok()) return broken_;
      if (result == NcclResult::kInProgress) {
        NcclResult state = NcclResult::kSuccess;
        const NcclResult asked = nccl_->comm_get_async_error(comm_, &state);
        result = asked == NcclResult::kSuccess ? state : asked;
      }
      if (result == NcclResult::kSuccess) return absl::OkStatus();
      if (result != NcclResult::kInProgress) {
        AbortLocked(ErrorOf(result));
        return broken_;
      }
      if (stop_.stop_requested()) {
        AbortLocked(absl::AbortedError("NCCL was waited for until its ranks were told to end"));
        return broken_;
      }
      waited = Clock::now() - begin;
      if (waited > timeout_) {
        AbortLocked(Unavailable("NCCL did not answer within {:.1f} s",
                                std::chrono::duration<double>(timeout_).count()));
        return broken_;
      }
    }
    if (waited < kNoSleep) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(kPoll);
    }
  }
}

absl::Status NcclSession::Run(const std::function<NcclResult(NcclComm*)>& enqueue) {
  NcclResult result;
  {
    const std::lock_guard lock(mutex_);
    if (!broken_.ok()) return broken_;
    result = nccl_->group_start();
    if (result == NcclResult::kSuccess) {
      const NcclResult enqueued = enqueue(comm_);
      result = nccl_->group_end();
      if (enqueued != NcclResult::kSuccess && enqueued != NcclResult::kInProgress) {
        result = enqueued;
      }
    }
  }
  return Settle(result);
}

absl::Status NcclSession::Watch(cudaStream_t stream) {
  const std::lock_guard lock(mutex_);
  if (!broken_.ok()) return broken_;
  if (is_watching_) {
    has_last_ = true;
    return last_.Record(stream);
  }
  NIBBLE_RETURN_IF_ERROR(watched_.Record(stream));
  is_watching_ = true;
  deadline_ = Clock::now() + timeout_;
  return absl::OkStatus();
}

void NcclSession::WatchLoop() {
  // Events belong to a device.
  const auto device = gpu::DeviceGuard::Create(device_);
  if (!device.ok()) return Abort(device.status());
  std::unique_lock lock(mutex_);
  while (!stopping_ && broken_.ok()) {
    LookOnce();
    changed_.wait_for(lock, kLook, [&] { return stopping_ || !broken_.ok(); });
  }
}

void NcclSession::LookOnce() {
  NcclResult state = NcclResult::kSuccess;
  const NcclResult asked = nccl_->comm_get_async_error(comm_, &state);
  if (asked != NcclResult::kSuccess) state = asked;
  if (state != NcclResult::kSuccess && state != NcclResult::kInProgress) {
    return AbortLocked(ErrorOf(state));
  }
  if (!is_watching_) return;
  const absl::StatusOr<bool> done = watched_.IsDone();
  if (!done.ok()) return AbortLocked(done.status());
  if (*done) {
    // What came after it gets a deadline of its own, from now on.
    is_watching_ = std::exchange(has_last_, false);
    std::swap(watched_, last_);
    deadline_ = Clock::now() + timeout_;
  } else if (Clock::now() > deadline_) {
    AbortLocked(Unavailable("a collective of NCCL did not end within {:.1f} s",
                            std::chrono::duration<double>(timeout_).count()));
  }
}

absl::Status NcclSession::Check() {
  const std::lock_guard lock(mutex_);
  return broken_;
}

void NcclSession::Abort(const absl::Status& why) {
  {
    const std::lock_guard lock(mutex_);
    AbortLocked(why);
  }
  changed_.notify_all();
}

void NcclSession::AbortLocked(const absl::Status& why) {
  if (!broken_.ok()) return;
  broken_ = why;
  if (comm_ != nullptr) (void)nccl_->comm_abort(std::exchange(comm_, nullptr));
}

absl::Status NcclSession::ErrorOf(NcclResult result) const {
  if (result == NcclResult::kSuccess) return absl::OkStatus();
  const char* const last = nccl_->get_last_error(nullptr);
  return Unavailable("NCCL: {}{}{}", nccl_->get_error_string(result),
                     last != nullptr && *last != '\0' ? ": " : "", last != nullptr ? last : "");
}

}  // namespace nibble::comm
