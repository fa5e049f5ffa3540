// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/choose_policy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/check.h"
#include "base/log.h"

namespace nibble::comm {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();
constexpr double kNotTried = std::numeric_limits<double>::infinity();

// A wider codec is taken up to so much slower than the fastest candidate. Below the 5 % that the
// choice may cost at most, with room for the noise of the measurement itself.
constexpr double kNearlyAsFast = 1.03;

// One-shot sends (N - 1) M bytes in one step, two-shot 2 (N - 1) / N M in two: for N > 2 they cross
// at M = a B N / ((N - 1) (N - 2)), a: seconds of a step, B: bytes/s of a rank's link; a * B, the
// bytes that a link could carry in a step's latency, is some 32 KiB from 1 to 10 Gbit/s. For N = 2
// both send the same, and one-shot sums twice as much.
constexpr double kLatencyBytes = 32 << 10;
constexpr double kOneShotBytesOfTwo = 256 << 10;

// Codes between ranks of one host: asked for by name, not for speed.
constexpr int64_t kOneShotBytesOfHost = 32 << 10;

// Sizes at which both algorithms are measured: beyond, one-shot cannot win.
constexpr int64_t kMaxOneShotBytes = int64_t{64} << 10;
constexpr int64_t kMaxOneShotBytesOfTwo = int64_t{1} << 20;

// A candidate that was so much slower than the fastest at two sizes in a row is not tried again:
// time is better spent on telling the others apart.
constexpr double kHopeless = 1.5;

// Each candidate runs until all took so long together, within these limits.
constexpr double kSecondsOfSize = 0.06;
constexpr int kMinRuns = 3;
constexpr int kMaxRuns = 15;

// The measurement ends early when a doubled size changed neither choice nor bytes/s by more.
constexpr double kSettled = 0.1;
constexpr int64_t kMinSettledBytes = int64_t{4} << 20;

AllReducePolicy OneShotUpTo(int64_t bytes, const CodecDesc& codec) {
  return {{{bytes, Algorithm::kOneShot, codec}, {kNoLimit, Algorithm::kTwoShot, codec}}};
}

int64_t MaxOneShotBytes(int num_ranks) {
  return num_ranks == 2 ? kMaxOneShotBytesOfTwo : kMaxOneShotBytes;
}

// A candidate's seconds as a multiple of the fastest one's.
double Slowness(const SizeTimes& size, size_t candidate) {
  return size.seconds[candidate] / *std::min_element(size.seconds.begin(), size.seconds.end());
}

// The same over this size and its neighbours (geometric mean): three times the runs, so that noise
// decides less.
double SlownessAround(const std::vector<SizeTimes>& sizes, size_t idx, size_t candidate) {
  double sum = 0.0;
  int count = 0;
  const size_t last = std::min(idx + 1, sizes.size() - 1);
  for (size_t i = idx > 0 ? idx - 1 : 0; i <= last; ++i) {
    const double slowness = Slowness(sizes[i], candidate);
    // Not tried: too large for it, or hopeless before. At a size where it was tried that is no
    // verdict.
    if (i != idx && slowness == kNotTried) continue;
    sum += std::log(slowness);
    ++count;
  }
  return std::exp(sum / count);
}

// What rank 0 tells the others before a size.
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
        candidates_(MeasuredCandidates(options.codec)) {}

  absl::StatusOr<AllReducePolicy> Run() {
    int64_t bytes = options_.min_bytes;
    for (;;) {
      // The first run finds out how many make a measurement.
      const uint64_t candidates = CandidatesFor(bytes);
      NIBBLE_ASSIGN_OR_RETURN(const Command first, Tell({bytes, 1, candidates}));
      if (first.message_bytes == 0) break;
      NIBBLE_ASSIGN_OR_RETURN(SizeTimes times, MeasureSize(first));
      NIBBLE_ASSIGN_OR_RETURN(const Command more, Tell({bytes, RunsFor(times), candidates}));
      NIBBLE_ASSIGN_OR_RETURN(times, MeasureSize(more));
      sizes_.push_back(std::move(times));
      bytes = NextSize(bytes);
    }
    return TellPolicy();
  }

 private:
  bool decides() const { return communicator_->rank() == 0; }

  absl::StatusOr<Command> Tell(Command command) {
    NIBBLE_RETURN_IF_ERROR(communicator_->Broadcast(&command, sizeof(command), 0));
    return command;
  }

  // Rank 0's answer counts.
  uint64_t CandidatesFor(int64_t bytes) const {
    uint64_t bits = 0;
    for (size_t c = 0; c < candidates_.size(); ++c) {
      const bool is_small = bytes <= MaxOneShotBytes(options_.num_hosts);
      if (candidates_[c].algorithm == Algorithm::kOneShot && !is_small) continue;
      const bool hopeless = sizes_.size() >= 2 && Slowness(sizes_.back(), c) > kHopeless &&
                            Slowness(sizes_[sizes_.size() - 2], c) > kHopeless;
      if (!hopeless) bits |= uint64_t{1} << c;
    }
    return bits;
  }

  // Candidates in turn, so that what disturbs the machine for a while disturbs all.
  absl::StatusOr<SizeTimes> MeasureSize(const Command& command) {
    const int64_t num_values = command.message_bytes / 2;
    const int64_t row_size =
        options_.row_size > 0 ? std::min(options_.row_size, num_values) : num_values;
    const int64_t num_rows = num_values / row_size;
    const auto size = static_cast<size_t>(num_rows * row_size);
    if (data_.size() < size) data_ = AlignedBuffer<float>(size);
    std::vector<std::vector<double>> seconds(candidates_.size());
    for (int64_t run = 0; run < command.num_runs; ++run) {
      for (size_t c = 0; c < candidates_.size(); ++c) {
        if ((command.candidates >> c & 1) == 0) continue;
        // Sums grow with every run: begin anew.
        for (size_t i = 0; i < size; ++i) data_[i] = static_cast<float>(i % 251) - 125.0F;
        NIBBLE_RETURN_IF_ERROR(communicator_->Barrier());
        const Clock::time_point start = Clock::now();
        NIBBLE_RETURN_IF_ERROR(communicator_->AllReduceBy(
            candidates_[c], {.data = data_.data(), .num_rows = num_rows, .row_size = row_size},
            pool_));
        seconds[c].push_back(std::chrono::duration<double>(Clock::now() - start).count());
      }
    }
    SizeTimes times = {command.message_bytes, std::vector<double>(candidates_.size(), kNotTried)};
    for (size_t c = 0; c < candidates_.size(); ++c) {
      if (seconds[c].empty()) continue;
      const auto middle = seconds[c].begin() + static_cast<std::ptrdiff_t>(seconds[c].size() / 2);
      std::nth_element(seconds[c].begin(), middle, seconds[c].end());
      times.seconds[c] = *middle;
    }
    return times;
  }

  static double SecondsOfAll(const SizeTimes& times) {
    double sum = 0.0;
    for (const double s : times.seconds) sum += s == kNotTried ? 0.0 : s;
    return sum;
  }
  static int64_t RunsFor(const SizeTimes& times) {
    const double runs = kSecondsOfSize / std::max(SecondsOfAll(times), 1e-9);
    return static_cast<int64_t>(std::clamp<double>(runs, kMinRuns, kMaxRuns));
  }

  // 0 when enough is known. Rank 0's answer counts.
  int64_t NextSize(int64_t bytes) const {
    const double expected = SecondsOfAll(sizes_.back()) * 2.0 * (kMinRuns + 1);
    const std::chrono::duration<double> passed = Clock::now() - start_;
    const std::chrono::duration<double> budget = options_.budget;
    if (bytes * 2 > options_.max_bytes || passed.count() + expected > budget.count()) return 0;
    return bytes >= kMinSettledBytes && Settled() ? 0 : bytes * 2;
  }

  bool Settled() const {
    if (sizes_.size() < 2) return false;
    const SizeTimes& before = sizes_[sizes_.size() - 2];
    const SizeTimes& now = sizes_.back();
    for (size_t c = 0; c < candidates_.size(); ++c) {
      if (now.seconds[c] == kNotTried || before.seconds[c] == kNotTried) continue;
      if (std::abs(now.seconds[c] / (2.0 * before.seconds[c]) - 1.0) > kSettled) return false;
    }
    return true;
  }

  absl::StatusOr<AllReducePolicy> TellPolicy() {
    std::string text = decides() ? Serialize(ChoosePolicy(candidates_, sizes_)) : "";
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
              sizes_.back().message_bytes >> 10);
  }

  const MeasureOptions& options_;
  GroupCommunicator* const communicator_;
  ThreadPool* const pool_;
  const std::vector<AllReduceChoice> candidates_;
  const Clock::time_point start_ = Clock::now();
  AlignedBuffer<float> data_;
  std::vector<SizeTimes> sizes_;
};

}  // namespace

AllReducePolicy HostPolicy(const CodecDesc& codec, int num_ranks) {
  if (codec.bits != 32) return OneShotUpTo(kOneShotBytesOfHost, codec);
  int64_t bytes = 1;
  while (bytes < int64_t{1} << 30 &&
         ShmCollectives::Faster(bytes, num_ranks) == Algorithm::kOneShot) {
    bytes *= 2;  // so many bytes as bf16 are half as many values
  }
  return OneShotUpTo(bytes, codec);
}

AllReducePolicy NetworkPolicy(const CodecDesc& codec, int num_ranks) {
  const double n = num_ranks;
  const double coded_bytes =
      num_ranks <= 2 ? kOneShotBytesOfTwo : kLatencyBytes * n / ((n - 1.0) * (n - 2.0));
  const auto bytes = static_cast<int64_t>(coded_bytes * 16.0 / EffectiveBits(codec));
  return OneShotUpTo(std::max<int64_t>(bytes >> 10, 1) << 10, codec);
}

AllReducePolicy UnmeasuredPolicy(const AllReduceOptions& options, int num_hosts, int num_ranks) {
  const bool fixed = options.mode == AllReduceOptions::Mode::kFixed;
  if (num_hosts == 1) return HostPolicy(fixed ? options.codec : CodecDesc{}, num_ranks);
  return NetworkPolicy(fixed ? options.codec : CodecDesc{.bits = 16}, num_hosts);
}

std::vector<AllReduceChoice> MeasuredCandidates(const CodecDesc& codec) {
  std::vector<AllReduceChoice> candidates;
  for (const int bits : {16, 8, 6, 5, 4}) {
    CodecDesc candidate = codec;
    if (bits == 16) candidate = {};
    candidate.bits = bits;
    for (const Algorithm algorithm : {Algorithm::kOneShot, Algorithm::kTwoShot}) {
      candidates.push_back({kNoLimit, algorithm, candidate});
    }
  }
  return candidates;
}

AllReducePolicy ChoosePolicy(const std::vector<AllReduceChoice>& candidates,
                             const std::vector<SizeTimes>& sizes) {
  NIBBLE_CHECK(!sizes.empty());
  AllReducePolicy policy;
  size_t previous = candidates.size();
  for (size_t i = 0; i < sizes.size(); ++i) {
    std::vector<double> slowness;
    for (size_t c = 0; c < candidates.size(); ++c) slowness.push_back(SlownessAround(sizes, i, c));
    const double limit = *std::min_element(slowness.begin(), slowness.end()) * kNearlyAsFast;
    const auto fits = [&](size_t c) { return c < candidates.size() && slowness[c] <= limit; };
    size_t choice = 0;
    while (!fits(choice)) ++choice;
    // Of one codec the faster algorithm.
    for (size_t c = choice + 1; c < candidates.size(); ++c) {
      if (candidates[c].codec == candidates[choice].codec && slowness[c] < slowness[choice]) {
        choice = c;
      }
    }
    if (fits(previous)) choice = previous;
    previous = choice;
    AllReduceChoice next = candidates[choice];
    next.max_bytes = sizes[i].message_bytes * 1448 / 1024 / 1024 * 1024;  // sqrt(2), in whole KiB
    std::vector<AllReduceChoice>& choices = policy.choices;
    if (!choices.empty() && choices.back().codec == next.codec &&
        choices.back().algorithm == next.algorithm) {
      choices.back() = next;
    } else {
      choices.push_back(next);
    }
  }
  policy.choices.back().max_bytes = kNoLimit;
  return policy;
}

absl::StatusOr<AllReducePolicy> MeasurePolicy(const MeasureOptions& options,
                                              GroupCommunicator* communicator, ThreadPool* pool) {
  return Measurement(options, communicator, pool).Run();
}

}  // namespace nibble::comm
