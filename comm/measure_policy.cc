// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/measure_policy.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/log.h"
#include "comm/choose_policy.h"

namespace nibble::comm {
namespace {

using Clock = std::chrono::steady_clock;

// Of the smallest messages tried.
constexpr int64_t kMinBytes = 1 << 10;
constexpr std::chrono::microseconds kPause{300};

// A row's bytes as bf16, in the power of two that is not above.
int64_t FirstSize(const MeasureOptions& options) {
  if (options.row_size <= 0) return options.min_bytes;
  const auto row_bytes =
      static_cast<int64_t>(std::bit_floor(uint64_t{2} * static_cast<uint64_t>(options.row_size)));
  return std::min(std::max(row_bytes, kMinBytes), options.min_bytes);
}

// What rank 0 tells the others before they run.
struct Command {
  int64_t message_bytes = 0;  // 0: enough was measured
  int64_t num_runs = 0;       // of each candidate
  uint64_t candidates = 0;    // bit i: candidate i is tried
};

class Measurement {
 public:
  Measurement(const MeasureOptions& options, GroupCommunicator* communicator, ThreadPool* pool)
      : options_(options),
        communicator_(communicator),
        pool_(pool),
        search_(options.codec, FirstSize(options), options.max_bytes) {}

  absl::StatusOr<AllReducePolicy> Run() {
    for (;;) {
      const PolicySearch::Trial trial =
          decides() ? search_.Next(SecondsLeft()) : PolicySearch::Trial();
      // The first run finds out how many make a measurement.
      NIBBLE_ASSIGN_OR_RETURN(const Command first,
                              Tell({trial.message_bytes, 1, trial.candidates}));
      if (first.message_bytes == 0) return TellPolicy();
      NIBBLE_ASSIGN_OR_RETURN(SizeTimes times, MeasureSize(first));
      Command more = first;
      if (decides()) more.num_runs = PolicySearch::MoreRuns(times, SecondsLeft());
      NIBBLE_ASSIGN_OR_RETURN(more, Tell(more));
      if (more.num_runs > 0) {
        NIBBLE_ASSIGN_OR_RETURN(times, MeasureSize(more));
      }
      if (decides()) search_.Add(std::move(times));
    }
  }

 private:
  bool decides() const { return communicator_->rank() == 0; }

  double SecondsLeft() const {
    return std::chrono::duration<double>(options_.budget - (Clock::now() - start_)).count();
  }

  absl::StatusOr<Command> Tell(Command command) {
    NIBBLE_RETURN_IF_ERROR(communicator_->Broadcast(&command, sizeof(command), 0));
    if (command.message_bytes < 0 || command.message_bytes > options_.max_bytes ||
        command.num_runs < 0 || command.num_runs > PolicySearch::kMaxRuns) {
      return DataLoss("rank 0 asks for {} all-reduces of {} bytes, the limits are {} and {}",
                      command.num_runs, command.message_bytes, PolicySearch::kMaxRuns,
                      options_.max_bytes);
    }
    return command;
  }

  // Candidates in turn, so that what disturbs the machine for a while disturbs all.
  absl::StatusOr<SizeTimes> MeasureSize(const Command& command) {
    const std::vector<AllReduceChoice>& candidates = search_.candidates();
    const int64_t num_values = std::max<int64_t>(command.message_bytes / 2, 1);
    const int64_t row_size =
        options_.row_size > 0 ? std::min(options_.row_size, num_values) : num_values;
    const int64_t num_rows = num_values / row_size;
    const auto size = static_cast<size_t>(num_rows * row_size);
    if (data_.size() < size) data_ = AlignedBuffer<float>(size);
    std::vector<std::vector<double>> seconds(candidates.size());
    for (int64_t run = 0; run < command.num_runs; ++run) {
      for (size_t c = 0; c < candidates.size(); ++c) {
        if ((command.candidates >> c & 1) == 0) continue;
        // Sums grow with every run: begin anew.
        for (size_t i = 0; i < size; ++i) data_[i] = static_cast<float>(i % 251) - 125.0F;
        // As a model does between two sums: what a link and its queues had to carry is through.
        std::this_thread::sleep_for(kPause);
        NIBBLE_RETURN_IF_ERROR(communicator_->Barrier());
        const Clock::time_point start = Clock::now();
        NIBBLE_RETURN_IF_ERROR(communicator_->AllReduceBy(
            candidates[c], {.data = data_.data(), .num_rows = num_rows, .row_size = row_size},
            pool_));
        seconds[c].push_back(std::chrono::duration<double>(Clock::now() - start).count());
      }
    }
    SizeTimes times = {
        command.message_bytes,
        std::vector<double>(candidates.size(), std::numeric_limits<double>::infinity())};
    for (size_t c = 0; c < candidates.size(); ++c) {
      if (seconds[c].empty()) continue;
      const auto middle = seconds[c].begin() + static_cast<std::ptrdiff_t>(seconds[c].size() / 2);
      std::nth_element(seconds[c].begin(), middle, seconds[c].end());
      times.seconds[c] = *middle;
    }
    return times;
  }

  absl::StatusOr<AllReducePolicy> TellPolicy() {
    std::string text = decides() ? Serialize(search_.Choose()) : "";
    int64_t size = static_cast<int64_t>(text.size());
    NIBBLE_RETURN_IF_ERROR(communicator_->Broadcast(&size, sizeof(size), 0));
    if (size < 0 || size > kMaxPolicyText) {
      return DataLoss("rank 0 announced an all-reduce policy of {} bytes, the limit is {}", size,
                      kMaxPolicyText);
    }
    text.resize(static_cast<size_t>(size));
    NIBBLE_RETURN_IF_ERROR(communicator_->Broadcast(text.data(), text.size(), 0));
    if (decides()) Log();
    return ParsePolicy(text);
  }

  void Log() const {
    const std::chrono::duration<double> passed = Clock::now() - start_;
    log::Info("all-reduce measured in {:.1f} s up to {} KiB", passed.count(),
              search_.sizes().back().message_bytes >> 10);
  }

  const MeasureOptions& options_;
  GroupCommunicator* const communicator_;
  ThreadPool* const pool_;
  PolicySearch search_;  // rank 0's decides
  const Clock::time_point start_ = Clock::now();
  AlignedBuffer<float> data_;
};

}  // namespace

absl::StatusOr<AllReducePolicy> MeasurePolicy(const MeasureOptions& options,
                                              GroupCommunicator* communicator, ThreadPool* pool) {
  return Measurement(options, communicator, pool).Run();
}

}  // namespace nibble::comm
