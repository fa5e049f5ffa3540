// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What is chosen from the times of candidates, and which are tried: the times come from models of
// links.

#include "comm/choose_policy.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "base/status.h"
#include "tests/testing/random.h"

namespace nibble::comm {
namespace {

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();
constexpr double kNotTried = std::numeric_limits<double>::infinity();

// Seconds of each candidate from its bytes, a step's latency and what coding costs.
SizeTimes Model(const std::vector<AllReduceChoice>& candidates, int64_t bytes, double bytes_per_s,
                double coding_s_per_byte) {
  SizeTimes times = {bytes, {}};
  for (const AllReduceChoice& candidate : candidates) {
    const bool one_shot = candidate.algorithm == Algorithm::kOneShot;
    const double coded = static_cast<double>(bytes) * EffectiveBits(candidate.codec) / 16.0;
    const double code = candidate.codec.is_integer() ? coding_s_per_byte : 0.0;
    times.seconds.push_back((one_shot ? 20e-6 : 40e-6) +
                            coded * (one_shot ? 3.0 : 1.5) / bytes_per_s +
                            code * static_cast<double>(bytes));
  }
  return times;
}

AllReducePolicy ChooseFor(double bytes_per_s, double coding_s_per_byte) {
  const std::vector<AllReduceChoice> candidates = MeasuredCandidates({});
  std::vector<SizeTimes> sizes;
  for (int64_t bytes = 8 << 10; bytes <= 64 << 20; bytes *= 2) {
    sizes.push_back(Model(candidates, bytes, bytes_per_s, coding_s_per_byte));
  }
  return ChoosePolicy(candidates, sizes);
}

TEST(ChoosePolicy, SlowLinksTakeFewBitsFastOnesNone) {
  const AllReducePolicy slow = ChooseFor(125e6, 1e-10);
  EXPECT_EQ(slow.For(64 << 20).codec.bits, 4);
  EXPECT_EQ(slow.For(64 << 20).algorithm, Algorithm::kTwoShot);
  const AllReducePolicy fast = ChooseFor(100e9, 1e-9);
  for (const AllReduceChoice& choice : fast.choices) EXPECT_EQ(choice.codec.bits, 16);
  EXPECT_EQ(fast.For(1).algorithm, Algorithm::kOneShot);
  EXPECT_EQ(fast.For(kNoLimit).algorithm, Algorithm::kTwoShot);
}

TEST(ChoosePolicy, AWiderCodecIsTakenWhenItIsNearlyAsFast) {
  const std::vector<AllReduceChoice> candidates = MeasuredCandidates({});
  SizeTimes size = {1 << 20, std::vector<double>(candidates.size(), 10.0)};
  const auto set = [&](int bits, double seconds) {
    for (size_t c = 0; c < candidates.size(); ++c) {
      if (candidates[c].codec.bits == bits) size.seconds[c] = seconds;
    }
  };
  set(4, 1.0);
  set(6, 1.02);
  set(8, 1.1);
  EXPECT_EQ(ChoosePolicy(candidates, {size}).For(1).codec.bits, 6);
  // Of candidates that are nearly the same, the one of the size before stays.
  SizeTimes first = size;
  first.message_bytes = 1 << 18;
  first.seconds.assign(candidates.size(), 10.0);
  for (size_t c = 0; c < candidates.size(); ++c) {
    if (candidates[c].codec.bits == 4) first.seconds[c] = 1.0;
  }
  SizeTimes second = first;
  second.message_bytes = 1 << 19;
  SizeTimes last = size;
  last.message_bytes = 1 << 21;
  const AllReducePolicy policy = ChoosePolicy(candidates, {first, second, size, last});
  EXPECT_EQ(policy.For(1 << 18).codec.bits, 4);
  EXPECT_EQ(policy.For(1 << 21).codec.bits, 4);
}

// One size at which the machine was disturbed flips nothing.
TEST(ChoosePolicy, NoiseOfOneSizeFlipsNoChoice) {
  const std::vector<AllReduceChoice> candidates = MeasuredCandidates({});
  std::vector<SizeTimes> sizes;
  for (int64_t bytes = 1 << 20; bytes <= 16 << 20; bytes *= 2) {
    sizes.push_back(Model(candidates, bytes, 125e6, 1e-10));
  }
  for (size_t c = 0; c < candidates.size(); ++c) {
    if (candidates[c].codec.bits == 4) sizes[2].seconds[c] *= 1.3;
  }
  for (const AllReduceChoice& choice : ChoosePolicy(candidates, sizes).choices) {
    EXPECT_EQ(choice.codec.bits, 4);
  }
}

// On a link so slow that only the smallest sizes can be measured, or where one-shot is ahead to the
// end: above nobody sends a message whole to everybody.
TEST(ChoosePolicy, AboveTheLastSizeIsTwoShot) {
  const std::vector<AllReduceChoice> candidates = MeasuredCandidates({});
  SizeTimes size = {8192, std::vector<double>(candidates.size(), 2.0)};
  for (size_t c = 0; c < candidates.size(); ++c) {
    if (candidates[c].algorithm == Algorithm::kOneShot && candidates[c].codec.bits == 5) {
      size.seconds[c] = 1.0;
    }
  }
  const AllReducePolicy policy = ChoosePolicy(candidates, {size});
  ASSERT_TRUE(policy.Validate().ok());
  EXPECT_EQ(policy.For(8192).algorithm, Algorithm::kOneShot);
  EXPECT_EQ(policy.For(16384).algorithm, Algorithm::kTwoShot);
  for (const AllReduceChoice& choice : policy.choices) EXPECT_EQ(choice.codec.bits, 5);
}

TEST(ChoosePolicy, ASizeWhereNothingWasTriedDecidesNothing) {
  const std::vector<AllReduceChoice> candidates = MeasuredCandidates({});
  const SizeTimes untried = {16384, std::vector<double>(candidates.size(), kNotTried)};
  const AllReducePolicy policy = ChoosePolicy(
      candidates,
      {Model(candidates, 8192, 125e6, 1e-10), untried, Model(candidates, 32768, 125e6, 1e-10)});
  ASSERT_TRUE(policy.Validate().ok());
  EXPECT_EQ(policy.For(16384).codec.bits, 4);
}

// Ranks with a link each: latency of a step, bytes/s, and what a byte of bf16 costs to be coded
// once, which is done beside the sending or before it.
struct Link {
  int num_ranks = 2;
  double latency = 0.0;
  double bytes_per_s = 0.0;
  double coding_s_per_byte = 0.0;
  bool overlaps = false;
};

double SecondsOn(const Link& link, const AllReduceChoice& choice, int64_t bytes) {
  const double n = link.num_ranks;
  const bool one_shot = choice.algorithm == Algorithm::kOneShot;
  const auto message = static_cast<double>(bytes);
  const double coded = message * EffectiveBits(choice.codec) / 16.0;
  const double sent = coded * (one_shot ? n - 1.0 : 2.0 * (n - 1.0) / n) / link.bytes_per_s;
  // Narrow codes take more work: all is coded, a stripe or everything is summed and coded again.
  const double work = choice.codec.is_integer() ? 1.0 + 0.5 / choice.codec.bits : 0.25;
  const double coding =
      message * link.coding_s_per_byte * work * (one_shot ? n + 2.0 : 3.0 + 1.0 / n);
  return link.latency * (one_shot ? 1.0 : 2.0) +
         (link.overlaps ? std::max(sent, coding) : sent + coding);
}

struct Searched {
  AllReducePolicy policy;
  double seconds = 0.0;        // that the measurement took
  double first_seconds = 0.0;  // of its first runs, whose cost nobody can know
};

constexpr double kBudget = 4.0;  // as MeasureOptions has

// As the group does it (measure_policy.cc), by the model's clock. `noise` multiplies every time.
Searched SearchOn(const Link& link, const std::function<double()>& noise) {
  PolicySearch search({}, 1 << 10, 64 << 20);
  Searched result;
  for (;;) {
    const PolicySearch::Trial trial = search.Next(kBudget - result.seconds);
    if (trial.message_bytes == 0) break;
    EXPECT_LE(search.sizes().size(), 17U);
    if (search.sizes().size() > 17) break;
    SizeTimes times = {trial.message_bytes, {}};
    bool has_two_shot = false;
    double once = 0.0;
    for (size_t c = 0; c < search.candidates().size(); ++c) {
      const bool is_tried = (trial.candidates >> c & 1) != 0;
      const AllReduceChoice& candidate = search.candidates()[c];
      has_two_shot |= is_tried && candidate.algorithm == Algorithm::kTwoShot;
      times.seconds.push_back(is_tried ? SecondsOn(link, candidate, trial.message_bytes) * noise()
                                       : kNotTried);
      if (is_tried) once += times.seconds.back();
    }
    EXPECT_TRUE(has_two_shot) << trial.message_bytes;
    if (search.sizes().empty()) result.first_seconds = once;
    result.seconds += once;
    const int64_t more = PolicySearch::MoreRuns(times, kBudget - result.seconds);
    EXPECT_GE(more, 0);
    EXPECT_LE(more, PolicySearch::kMaxRuns);
    result.seconds += once * static_cast<double>(more);
    search.Add(std::move(times));
  }
  result.policy = search.Choose();
  return result;
}

// The policy's time at a size as a multiple of the best candidate's.
double Excess(const Link& link, const AllReducePolicy& policy, int64_t bytes) {
  double best = kNotTried;
  for (const AllReduceChoice& candidate : MeasuredCandidates({})) {
    best = std::min(best, SecondsOn(link, candidate, bytes));
  }
  return SecondsOn(link, policy.For(bytes), bytes) / best;
}

std::string ToString(const Link& link) {
  return fmt::format("{} ranks, {} us, {} Mbit/s, {} ns/B{}", link.num_ranks, link.latency * 1e6,
                     link.bytes_per_s * 8e-6, link.coding_s_per_byte * 1e9,
                     link.overlaps ? ", overlapping" : "");
}

void ForLinks(const std::function<void(const Link&)>& body) {
  for (const int num_ranks : {2, 3, 4, 5, 8, 16, 64}) {
    for (const double latency_us : {5, 10, 20, 40, 70, 100, 200, 500}) {
      for (double bits_per_s = 1e7; bits_per_s < 2e11; bits_per_s *= 3.1623) {
        for (const double coding_ns : {0.0, 0.05, 0.2, 1.0, 5.0}) {
          for (const bool overlaps : {false, true}) {
            body({num_ranks, latency_us * 1e-6, bits_per_s / 8.0, coding_ns * 1e-9, overlaps});
          }
        }
      }
    }
  }
}

TEST(PolicySearch, NearlyTheBestOnEveryLink) {
  double worst = 0.0;
  ForLinks([&](const Link& link) {
    const Searched searched = SearchOn(link, [] { return 1.0; });
    ASSERT_TRUE(searched.policy.Validate().ok()) << searched.policy.Validate();
    EXPECT_LE(searched.seconds, kBudget + searched.first_seconds) << ToString(link);
    for (int64_t bytes = 1 << 10; bytes <= 64 << 20; bytes *= 2) {
      const double excess = Excess(link, searched.policy, bytes);
      worst = std::max(worst, excess);
      EXPECT_LE(excess, 1.05) << ToString(link) << ", " << bytes
                              << " bytes: " << ToString(searched.policy);
    }
  });
  RecordProperty("worst", std::to_string(worst));
}

// Times that are off by up to a tenth cost more than that only where two of them meet.
TEST(PolicySearch, NoiseNeitherHangsNorMisleads) {
  testing::Random random(4);
  double worst = 0.0;
  ForLinks([&](const Link& link) {
    const Searched searched = SearchOn(link, [&] { return random.Uniform(0.9F, 1.1F); });
    ASSERT_TRUE(searched.policy.Validate().ok()) << searched.policy.Validate();
    for (int64_t bytes = 1 << 10; bytes <= 64 << 20; bytes *= 2) {
      const double excess = Excess(link, searched.policy, bytes);
      worst = std::max(worst, excess);
      EXPECT_LE(excess, 1.3) << ToString(link) << ", " << bytes
                             << " bytes: " << ToString(searched.policy);
    }
  });
  RecordProperty("worst", std::to_string(worst));
}

// A clock that stood still, and times without any order.
TEST(PolicySearch, EndsWhateverTheTimes) {
  testing::Random random(7);
  for (int round = 0; round < 2000; ++round) {
    const float widest = round == 0 ? 0.0F : random.Uniform(0.0F, 0.1F);
    const Link link = {.bytes_per_s = 1e9};
    const Searched searched = SearchOn(link, [&] {
      const float times = random.Uniform(0.0F, widest);
      return times * times * 1e3;
    });
    ASSERT_TRUE(searched.policy.Validate().ok()) << searched.policy.Validate();
  }
}

}  // namespace
}  // namespace nibble::comm
