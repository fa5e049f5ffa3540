// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/choose_policy.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "base/check.h"
#include "comm/shm/collectives.h"

namespace nibble::comm {
namespace {

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();
constexpr double kNotTried = std::numeric_limits<double>::infinity();

// One-shot sends (N - 1) M bytes in one step, two-shot 2 (N - 1) / N M in two: for N > 2 they cross
// at M = a B N / ((N - 1) (N - 2)), a: seconds of a step, B: bytes/s of a rank's link; a * B, the
// bytes that a link could carry in a step's latency, is some 32 KiB from 1 to 10 Gbit/s. For N = 2
// both send the same, and one-shot sums twice as much.
constexpr double kLatencyBytes = 32 << 10;
constexpr double kOneShotBytesOfTwo = 256 << 10;

// Codes between ranks of one host: asked for by name, not for speed.
constexpr int64_t kOneShotBytesOfHost = 32 << 10;

// A wider codec is taken up to so much slower than the fastest candidate. Below the 5 % that the
// choice may cost at most, with room for the noise of the measurement itself.
constexpr double kNearlyAsFast = 1.03;

// A size's own share of a smoothed time: with it noise counts least.
constexpr double kOwnShare = 0.4;

// A candidate that was so much slower than the fastest of its algorithm at two sizes in a row has
// lost: their steps' latencies are the same, so larger sizes only tell more bytes and slower coding
// from less.
constexpr double kHopeless = 1.5;

// Each candidate runs until all took so long together, within these limits.
constexpr double kSecondsOfSize = 0.12;
constexpr int64_t kMinRuns = 5;

// The measurement ends early when a doubled size took twice as long by every candidate, give or
// take.
constexpr double kSettled = 0.1;
constexpr int64_t kMinSettledBytes = int64_t{4} << 20;

AllReducePolicy OneShotUpTo(int64_t bytes, const CodecDesc& codec) {
  return {{{bytes, Algorithm::kOneShot, codec}, {kNoLimit, Algorithm::kTwoShot, codec}}};
}

// Seconds of each candidate at a size. What takes a + b M by messages of M bytes takes
// (2 t(M / 2) + t(2 M)) / 3 by M: three sizes tell about one of them, and noise counts less.
std::vector<double> Smoothed(const std::vector<SizeTimes>& sizes, size_t idx) {
  std::vector<double> seconds = sizes[idx].seconds;
  if (idx == 0 || idx + 1 == sizes.size()) return seconds;
  for (size_t c = 0; c < seconds.size(); ++c) {
    const double around = (2.0 * sizes[idx - 1].seconds[c] + sizes[idx + 1].seconds[c]) / 3.0;
    if (seconds[c] == kNotTried || around == kNotTried) continue;
    seconds[c] = kOwnShare * seconds[c] + (1.0 - kOwnShare) * around;
  }
  return seconds;
}

// The candidate of a size whose fastest took `fastest`. `previous`: the one of the size before.
size_t ChooseAt(const std::vector<AllReduceChoice>& candidates, const std::vector<double>& seconds,
                double fastest, size_t previous) {
  const auto fits = [&](size_t c) { return seconds[c] <= fastest * kNearlyAsFast; };
  if (previous < candidates.size() && fits(previous)) return previous;
  size_t choice = candidates.size();
  for (size_t c = 0; c < candidates.size(); ++c) {
    if (!fits(c)) continue;
    // Wider ones come first; of one codec the faster algorithm counts.
    if (choice == candidates.size() ||
        (candidates[c].codec == candidates[choice].codec && seconds[c] < seconds[choice])) {
      choice = c;
    }
  }
  NIBBLE_CHECK_LT(choice, candidates.size());
  return choice;
}

// Of what was tried.
double SecondsOfAll(const SizeTimes& times) {
  double sum = 0.0;
  for (const double seconds : times.seconds) sum += seconds == kNotTried ? 0.0 : seconds;
  return sum;
}

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
  AllReducePolicy policy;
  std::vector<AllReduceChoice>& choices = policy.choices;
  size_t previous = candidates.size();
  for (size_t i = 0; i < sizes.size(); ++i) {
    const std::vector<double> seconds = Smoothed(sizes, i);
    const double fastest = *std::min_element(seconds.begin(), seconds.end());
    if (fastest == kNotTried) continue;
    const size_t choice = ChooseAt(candidates, seconds, fastest, previous);
    if (choice != previous) choices.push_back(candidates[choice]);
    previous = choice;
    choices.back().max_bytes = sizes[i].message_bytes * 1448 / 1024 / 1024 * 1024;  // sqrt(2), KiB
  }
  NIBBLE_CHECK(!choices.empty());
  if (choices.back().algorithm == Algorithm::kOneShot) {
    choices.push_back({kNoLimit, Algorithm::kTwoShot, choices.back().codec});
  }
  choices.back().max_bytes = kNoLimit;
  return policy;
}

PolicySearch::PolicySearch(const CodecDesc& codec, int64_t min_bytes, int64_t max_bytes)
    : candidates_(MeasuredCandidates(codec)),
      min_bytes_(min_bytes),
      max_bytes_(max_bytes),
      tried_((uint64_t{1} << candidates_.size()) - 1) {}

PolicySearch::Trial PolicySearch::Next(double seconds_left) const {
  if (sizes_.empty()) return {min_bytes_, tried_};
  const SizeTimes& last = sizes_.back();
  const int64_t bytes = last.message_bytes * 2;
  const double expected = SecondsOfAll(last) * 2.0 * static_cast<double>(kMinRuns + 1);
  if (bytes > max_bytes_ || expected > seconds_left || Settled()) return {};
  return {bytes, tried_};
}

int64_t PolicySearch::MoreRuns(const SizeTimes& once, double seconds_left) {
  const double sum = std::max(SecondsOfAll(once), 1e-9);
  if (sum * static_cast<double>(kMinRuns) > seconds_left) return 0;
  return static_cast<int64_t>(std::clamp(std::min(kSecondsOfSize, seconds_left) / sum,
                                         static_cast<double>(kMinRuns),
                                         static_cast<double>(kMaxRuns)));
}

void PolicySearch::Add(SizeTimes times) {
  NIBBLE_CHECK_EQ(times.seconds.size(), candidates_.size());
  for (size_t c = 0; c < candidates_.size(); ++c) {
    double& seconds = times.seconds[c];
    seconds = (tried_ >> c & 1) == 0 ? kNotTried : std::max(seconds, 1e-9);
  }
  sizes_.push_back(std::move(times));
  if (sizes_.size() > 1) DropLosers();
}

// By the last two sizes.
void PolicySearch::DropLosers() {
  constexpr auto kOneShot = static_cast<size_t>(Algorithm::kOneShot);
  constexpr auto kTwoShot = static_cast<size_t>(Algorithm::kTwoShot);
  uint64_t hopeless = tried_;
  bool one_shot_leads = false;
  for (const SizeTimes* size : {&sizes_[sizes_.size() - 2], &sizes_.back()}) {
    std::array<double, 2> fastest = {kNotTried, kNotTried};  // by algorithm
    for (size_t c = 0; c < candidates_.size(); ++c) {
      double& of_algorithm = fastest[static_cast<size_t>(candidates_[c].algorithm)];
      if ((tried_ >> c & 1) != 0) of_algorithm = std::min(of_algorithm, size->seconds[c]);
    }
    // What one-shot gains by its one step less is worth the less the larger a message is.
    one_shot_leads |= fastest[kOneShot] * kNearlyAsFast < fastest[kTwoShot];
    for (size_t c = 0; c < candidates_.size(); ++c) {
      const double limit = fastest[static_cast<size_t>(candidates_[c].algorithm)] * kHopeless;
      if (!(size->seconds[c] > limit)) hopeless &= ~(uint64_t{1} << c);
    }
  }
  for (size_t c = 0; c < candidates_.size(); ++c) {
    const bool is_one_shot = candidates_[c].algorithm == Algorithm::kOneShot;
    if ((hopeless >> c & 1) != 0 || (is_one_shot && !one_shot_leads)) {
      tried_ &= ~(uint64_t{1} << c);
    }
  }
}

bool PolicySearch::Settled() const {
  if (sizes_.size() < 2 || sizes_.back().message_bytes < kMinSettledBytes) return false;
  const SizeTimes& before = sizes_[sizes_.size() - 2];
  const SizeTimes& now = sizes_.back();
  for (size_t c = 0; c < candidates_.size(); ++c) {
    if ((tried_ >> c & 1) == 0) continue;
    if (std::abs(now.seconds[c] / (2.0 * before.seconds[c]) - 1.0) > kSettled) return false;
  }
  return true;
}

}  // namespace nibble::comm
