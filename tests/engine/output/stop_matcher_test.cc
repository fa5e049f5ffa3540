// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/output/stop_matcher.h"

#include "gtest/gtest.h"

#include "tests/testing/random.h"

namespace nibble::engine {
namespace {

// The rule in its plainest words: the first byte at which some stop string ends, the longest there.
std::optional<StopMatcher::Match> Naive(const std::vector<std::string>& stop,
                                        const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    std::optional<StopMatcher::Match> best;
    for (size_t i = 0; i < stop.size(); ++i) {
      if (stop[i].size() > end) continue;
      const size_t begin = end - stop[i].size();
      if (text.compare(begin, stop[i].size(), stop[i]) != 0) continue;
      if (!best || begin < best->begin) best = StopMatcher::Match{begin, i};
    }
    if (best) return best;
  }
  return std::nullopt;
}

size_t NaiveHeld(const std::vector<std::string>& stop, const std::string& text) {
  size_t held = 0;
  for (const std::string& s : stop) {
    for (size_t n = 1; n < s.size() && n <= text.size(); ++n) {
      if (text.compare(text.size() - n, n, s, 0, n) == 0) held = std::max(held, n);
    }
  }
  return held;
}

TEST(StopMatcherTest, FindsAMatchAcrossPieces) {
  StopMatcher matcher({"END"});
  EXPECT_FALSE(matcher.Append("the E", true));
  EXPECT_EQ(matcher.num_held_bytes(), 1U);
  EXPECT_FALSE(matcher.Append("N", true));
  EXPECT_EQ(matcher.num_held_bytes(), 2U);
  EXPECT_FALSE(matcher.Append("E", true));
  EXPECT_EQ(matcher.num_held_bytes(), 1U);
  const auto match = matcher.Append("ND and more", true);
  ASSERT_TRUE(match);
  EXPECT_EQ(match->begin, 6U);
}

TEST(StopMatcherTest, WithoutStopStringsNothingIsHeld) {
  StopMatcher matcher({});
  EXPECT_FALSE(matcher.Append("text", true));
  EXPECT_EQ(matcher.num_held_bytes(), 0U);
}

TEST(StopMatcherTest, AgreesWithTheNaiveRuleHoweverTheTextIsCut) {
  testing::Random random(3);
  int num_matches = 0;
  for (int round = 0; round < 5000; ++round) {
    std::vector<std::string> stop(static_cast<size_t>(random.Int(1, 4)));
    for (std::string& s : stop) {
      for (int64_t n = random.Int(1, 6); n > 0; --n) s += static_cast<char>('a' + random.Int(0, 1));
    }
    std::string text;
    for (int64_t n = random.Int(0, 12); n > 0; --n) {
      text += static_cast<char>('a' + random.Int(0, 2));
    }
    const auto expected = Naive(stop, text);
    StopMatcher matcher(stop);
    std::optional<StopMatcher::Match> actual;
    size_t read = 0;
    while (read < text.size() && !actual) {
      const auto n = static_cast<size_t>(random.Int(0, 4));
      actual = matcher.Append(std::string_view(text).substr(read, n), true);
      read = std::min(text.size(), read + n);
      if (!actual) {
        ASSERT_EQ(matcher.num_held_bytes(), NaiveHeld(stop, text.substr(0, read)));
      }
    }
    ASSERT_EQ(actual.has_value(), expected.has_value()) << text;
    if (!expected) continue;
    ++num_matches;
    ASSERT_EQ(actual->begin, expected->begin) << text;
    ASSERT_EQ(stop[actual->stop_idx], stop[expected->stop_idx]) << text;
  }
  EXPECT_GT(num_matches, 1000);
}

}  // namespace
}  // namespace nibble::engine
