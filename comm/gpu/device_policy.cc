// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/gpu/device_policy.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "base/log.h"
#include "comm/choose_policy.h"
#include "comm/gpu/agree.h"

namespace nibble::comm {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();
// A second step's latency times a link's bandwidth, 2.5 us and 300 GB/s: an estimate of NVLink's.
constexpr int64_t kLatencyBytes = 750'000;

// Codes up to which one step's extra bytes cost less than a second step does:
// latency * bandwidth * N / ((N - 1) (N - 2)); between two ranks both send the same.
int64_t OneShotCodes(int num_ranks) {
  const int64_t n = num_ranks;
  return n <= 2 ? 4 * kLatencyBytes : kLatencyBytes * n / ((n - 1) * (n - 2));
}

// Times of a candidate at a size, of which the middle one counts.
constexpr int kRuns = 5;

class Measurement {
 public:
  Measurement(const MeasureDeviceOptions& options, Communicator* host, const TimeAllReduce& time)
      : options_(options),
        host_(host),
        time_(time),
        candidates_(MeasuredCandidates(options.codec)) {}

  absl::StatusOr<AllReducePolicy> Run() {
    for (int64_t bytes = options_.min_bytes; bytes <= options_.max_bytes; bytes *= 2) {
      NIBBLE_ASSIGN_OR_RETURN(const bool go_on, Tell(sizes_.empty() || SecondsLeft() > 0.0));
      if (!go_on) break;
      NIBBLE_RETURN_IF_ERROR(MeasureSize(bytes));
    }
    return TellPolicy();
  }

 private:
  bool decides() const { return host_->rank() == 0; }
  double SecondsLeft() const {
    return options_.budget_seconds - std::chrono::duration<double>(Clock::now() - start_).count();
  }

  // What rank 0 thinks.
  absl::StatusOr<bool> Tell(bool yes) {
    uint8_t word = yes ? 1 : 0;
    NIBBLE_RETURN_IF_ERROR(host_->Broadcast(&word, sizeof(word), 0));
    return word != 0;
  }

  // Candidates in turn, so that what disturbs the machine for a while disturbs all.
  absl::Status MeasureSize(int64_t message_bytes) {
    std::vector<std::vector<double>> seconds(candidates_.size());
    for (int run = 0; run < kRuns; ++run) {
      for (size_t c = 0; c < candidates_.size(); ++c) {
        // What fails on one rank ends it on all of them, at the same collective.
        const absl::StatusOr<double> taken = time_(candidates_[c], message_bytes);
        NIBBLE_RETURN_IF_ERROR(Agree(host_, taken.status()));
        seconds[c].push_back(*taken);
      }
    }
    SizeTimes times = {message_bytes, {}};
    for (std::vector<double>& of_candidate : seconds) {
      const auto middle = of_candidate.begin() + kRuns / 2;
      std::nth_element(of_candidate.begin(), middle, of_candidate.end());
      times.seconds.push_back(*middle);
    }
    sizes_.push_back(std::move(times));
    return absl::OkStatus();
  }

  absl::StatusOr<AllReducePolicy> TellPolicy() {
    std::string text = decides() ? Serialize(ChoosePolicy(candidates_, sizes_)) : "";
    auto size = static_cast<int64_t>(text.size());
    NIBBLE_RETURN_IF_ERROR(host_->Broadcast(&size, sizeof(size), 0));
    if (size < 0 || size > kMaxPolicyText) {
      return DataLoss("rank 0 announced an all-reduce policy of {} bytes, the limit is {}", size,
                      kMaxPolicyText);
    }
    text.resize(static_cast<size_t>(size));
    NIBBLE_RETURN_IF_ERROR(host_->Broadcast(text.data(), text.size(), 0));
    NIBBLE_ASSIGN_OR_RETURN(AllReducePolicy policy, ParsePolicy(text));
    if (decides()) log::Info("all-reduce between devices, measured: {}", ToString(policy));
    return policy;
  }

  const MeasureDeviceOptions& options_;
  Communicator* const host_;
  const TimeAllReduce& time_;
  const std::vector<AllReduceChoice> candidates_;
  std::vector<SizeTimes> sizes_;
  const Clock::time_point start_ = Clock::now();
};

}  // namespace

AllReducePolicy UnmeasuredDevicePolicy(const AllReducePolicy& host_policy, int num_ranks) {
  const int64_t codes = OneShotCodes(num_ranks);
  AllReducePolicy policy;
  int64_t below = 0;
  const auto add = [&](int64_t max_bytes, Algorithm algorithm, const CodecDesc& codec) {
    if (max_bytes > below) policy.choices.push_back({max_bytes, algorithm, codec});
    below = std::max(below, max_bytes);
  };
  for (const AllReduceChoice& choice : host_policy.choices) {
    const auto one_shot =
        static_cast<int64_t>(static_cast<double>(codes) * 16.0 / EffectiveBits(choice.codec));
    add(std::min(one_shot, choice.max_bytes), Algorithm::kOneShot, choice.codec);
    add(choice.max_bytes, Algorithm::kTwoShot, choice.codec);
  }
  return policy;
}

absl::StatusOr<AllReducePolicy> MeasureDevicePolicy(const MeasureDeviceOptions& options,
                                                    Communicator* host, const TimeAllReduce& time) {
  return Measurement(options, host, time).Run();
}

}  // namespace nibble::comm
