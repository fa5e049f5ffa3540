// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What stands between the engine and a front end's sink:
//
//   engine --> TracingSink --> DeadlineSink --> the front end's
//              (notes facts)   (ends it in time)
#pragma once

#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"
#include "server/admission/deadline_queue.h"
#include "server/admission/generation_service.h"
#include "server/request_log/request_trace.h"

namespace nibble::server {

// Writes what the engine tells into the request's trace.
class TracingSink final : public GenerationSink {
 public:
  // `with_texts`: the output too, up to kMaxTracedBytes.
  TracingSink(std::shared_ptr<RequestTrace> trace, bool with_texts,
              std::shared_ptr<GenerationSink> sink);
  void OnDelta(int index, engine::RequestOutput output) override;

 private:
  const std::shared_ptr<RequestTrace> trace_;
  const bool with_texts_;
  const std::shared_ptr<GenerationSink> sink_;
};

inline constexpr size_t kMaxTracedBytes = size_t{64} << 10;
// Appends to a traced text what fits, in whole characters.
void AppendTraced(std::string_view text, std::string* traced);

// Ends a request with DEADLINE_EXCEEDED once its time is over: its choices are cancelled, the sink
// gets one last delta with that error, and nothing of what the engine still tells.
class DeadlineSink final : public GenerationSink,
                           public std::enable_shared_from_this<DeadlineSink> {
 public:
  // `trace` may be null.
  DeadlineSink(std::shared_ptr<DeadlineQueue> queue, std::shared_ptr<GenerationSink> sink,
               std::shared_ptr<RequestTrace> trace, int64_t num_choices, double limit_seconds);
  // Once, after the request was submitted; deltas may have come already.
  void Watch(std::chrono::steady_clock::time_point deadline,
             std::shared_ptr<Generation> generation);
  void OnDelta(int index, engine::RequestOutput output) override;

 private:
  void Expire();

  const std::shared_ptr<DeadlineQueue> queue_;  // also when the service is gone
  const std::shared_ptr<GenerationSink> sink_;
  const std::shared_ptr<RequestTrace> trace_;
  const double limit_seconds_;

  std::mutex mutex_;  // guards all below, and makes deltas come one at a time
  int64_t num_open_;  // choices that have not ended
  bool expired_ = false;
  std::optional<DeadlineQueue::Key> key_;
  std::shared_ptr<Generation> generation_;
};

// Seconds as an option or header says them: a plain decimal number. INVALID_ARGUMENT naming the
// limits for anything else than kMinTimeoutSeconds..kMaxTimeoutSeconds.
inline constexpr double kMinTimeoutSeconds = 0.001;
inline constexpr double kMaxTimeoutSeconds = 86400.0;
absl::StatusOr<std::chrono::nanoseconds> ParseTimeout(std::string_view text);

}  // namespace nibble::server
