// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/load/runner.h"

#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <string>

namespace nibble::client {
namespace {

constexpr int64_t kMillisecondNs = 1'000'000;
constexpr int64_t kProgressIntervalNs = 200 * kMillisecondNs;
// The longest wait: interrupts are looked for, and how late it ends tells how busy this thread is.
constexpr int64_t kMaxWaitNs = 10 * kMillisecondNs;
// Cancelled requests end at once, or their connections are stuck.
constexpr int64_t kCancelNs = 5'000 * kMillisecondNs;
// Requests started in a row, while answers wait.
constexpr int kMaxStarts = 16;

double ThreadCpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_THREAD, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

std::vector<int64_t> ToNs(const std::vector<double>& seconds) {
  std::vector<int64_t> result;
  result.reserve(seconds.size());
  for (const double s : seconds) result.push_back(std::llround(s * 1e9));
  return result;
}

class Run final : public TransportEvents {
 public:
  Run(const std::vector<LoadRequest>& requests, const std::vector<double>& arrivals_s,
      int64_t max_concurrency, Transport* transport, const RunHooks& hooks)
      : requests_(requests),
        schedule_(ToNs(arrivals_s), max_concurrency),
        transport_(transport),
        hooks_(hooks) {
    outcome_.records.resize(requests.size());
  }

  RunOutcome Go() {
    transport_->SetEvents(this);
    transport_->TakeWakeDelays();
    transport_->TakeResends();
    const double cpu_before = ThreadCpuSeconds();
    start_ns_ = hooks_.clock->NowNs();
    while (!schedule_.done()) {
      StartDue();
      ShowProgress();
      if (Interrupted()) break;
      const int64_t now_ns = Now();
      const int64_t wait_ns = std::clamp<int64_t>(
          schedule_.NextNs() == Schedule::kNever ? kMaxWaitNs : schedule_.NextNs() - now_ns, 0,
          kMaxWaitNs);
      transport_->Poll(start_ns_ + now_ns + wait_ns);
    }
    if (outcome_.interrupted) Cancel();
    next_progress_ns_ = 0;  // how it ended is always shown
    ShowProgress();
    outcome_.duration_ns = outcome_.interrupted ? Now() : last_end_ns_;
    outcome_.cpu_seconds = ThreadCpuSeconds() - cpu_before;
    outcome_.wake_delays_ns = transport_->TakeWakeDelays();
    outcome_.num_resends = transport_->TakeResends();
    transport_->SetEvents(nullptr);
    return std::move(outcome_);
  }

  void OnChunk(size_t idx) override {
    RequestRecord& record = outcome_.records[idx];
    const int64_t now_ns = Now();
    if (record.chunk_ns.empty()) {
      ++num_first_chunks_;
      sum_ttft_ns_ += now_ns - record.start_ns;
    } else {
      ++num_gaps_;
      sum_gaps_ns_ += now_ns - record.chunk_ns.back();
    }
    record.chunk_ns.push_back(now_ns);
  }
  void OnFinishReason(size_t idx, std::string_view reason) override {
    outcome_.records[idx].finish_reason = reason;
  }
  void OnUsage(size_t idx, int64_t prompt_tokens, int64_t output_tokens) override {
    outcome_.records[idx].prompt_tokens = prompt_tokens;
    outcome_.records[idx].output_tokens = output_tokens;
  }
  void OnEnd(size_t idx, const absl::Status& status) override {
    RequestRecord& record = outcome_.records[idx];
    last_end_ns_ = Now();
    record.end_ns = last_end_ns_;
    schedule_.OnEnd(last_end_ns_);
    if (cancelling_ && absl::IsCancelled(status)) {
      record.state = RequestRecord::State::kInterrupted;
    } else if (status.ok() && !record.chunk_ns.empty()) {
      record.state = RequestRecord::State::kCompleted;
      ++num_completed_;
    } else {
      record.state = RequestRecord::State::kFailed;
      record.error = status.ok() ? "an answer without a token" : std::string(status.message());
      if (record.error.empty()) record.error = std::string(absl::StatusCodeToString(status.code()));
      ++num_failed_;
    }
  }

 private:
  int64_t Now() const { return hooks_.clock->NowNs() - start_ns_; }

  void StartDue() {
    for (int i = 0; i < kMaxStarts; ++i) {
      const std::optional<Schedule::Start> due = schedule_.TakeDue(Now());
      if (!due.has_value()) return;
      RequestRecord& record = outcome_.records[due->idx];
      record.state = RequestRecord::State::kRunning;
      record.arrival_ns = due->arrival_ns;
      record.ready_ns = due->ready_ns;
      record.start_ns = Now();
      record.prompt_length = requests_[due->idx].prompt_length();
      transport_->Start(due->idx, requests_[due->idx]);
    }
  }

  bool Interrupted() {
    if (hooks_.interrupted != nullptr && hooks_.interrupted->load()) outcome_.interrupted = true;
    return outcome_.interrupted;
  }

  void Cancel() {
    schedule_.Stop();
    cancelling_ = true;
    const int64_t deadline_ns = hooks_.clock->NowNs() + kCancelNs;
    transport_->CancelAll();
    while (!schedule_.done() && hooks_.clock->NowNs() < deadline_ns) {
      transport_->Poll(hooks_.clock->NowNs() + kMaxWaitNs);
    }
    for (RequestRecord& record : outcome_.records) {
      if (record.state == RequestRecord::State::kRunning) {
        record.end_ns = Now();
        record.state = RequestRecord::State::kInterrupted;
      }
    }
  }

  void ShowProgress() {
    if (!hooks_.progress) return;
    const int64_t now_ns = Now();
    if (now_ns < next_progress_ns_) return;
    const int64_t num_chunks = num_first_chunks_ + num_gaps_;
    const double since_s = static_cast<double>(now_ns - last_progress_ns_) * 1e-9;
    const auto mean_ms = [](int64_t sum_ns, int64_t count) {
      return count == 0 ? 0.0 : static_cast<double>(sum_ns) / static_cast<double>(count) * 1e-6;
    };
    hooks_.progress({.total = static_cast<int64_t>(schedule_.size()),
                     .completed = num_completed_,
                     .failed = num_failed_,
                     .running = schedule_.running(),
                     .seconds = static_cast<double>(now_ns) * 1e-9,
                     .chunks_per_s = since_s > 0
                                         ? static_cast<double>(num_chunks - last_chunks_) / since_s
                                         : 0.0,
                     .mean_ttft_ms = mean_ms(sum_ttft_ns_, num_first_chunks_),
                     .mean_itl_ms = mean_ms(sum_gaps_ns_, num_gaps_)});
    last_chunks_ = num_chunks;
    last_progress_ns_ = now_ns;
    next_progress_ns_ = now_ns + kProgressIntervalNs;
  }

  const std::vector<LoadRequest>& requests_;
  Schedule schedule_;
  Transport* const transport_;
  const RunHooks& hooks_;
  RunOutcome outcome_;
  bool cancelling_ = false;
  int64_t start_ns_ = 0;  // of the clock; other times here are since then
  int64_t last_end_ns_ = 0;
  int64_t next_progress_ns_ = 0;
  int64_t last_progress_ns_ = 0;
  int64_t last_chunks_ = 0;
  int64_t num_completed_ = 0;
  int64_t num_failed_ = 0;
  int64_t num_first_chunks_ = 0;
  int64_t sum_ttft_ns_ = 0;
  int64_t num_gaps_ = 0;
  int64_t sum_gaps_ns_ = 0;
};

}  // namespace

RunOutcome RunRequests(const std::vector<LoadRequest>& requests,
                       const std::vector<double>& arrivals_s, int64_t max_concurrency,
                       Transport* transport, const RunHooks& hooks) {
  return Run(requests, arrivals_s, max_concurrency, transport, hooks).Go();
}

}  // namespace nibble::client
