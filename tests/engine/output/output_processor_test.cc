// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/output/output_processor.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/engine/output/fake_tokenizer.h"
#include "tests/testing/random.h"

namespace nibble::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Feeds tokens 0, 1, 2, ... of `pieces`, the last with `finish`; collects what comes out.
struct Result {
  std::string text;
  std::vector<std::string> deltas;
  std::vector<int32_t> token_ids;
  RequestOutput last;
};

Result Feed(const std::vector<std::string>& pieces, const SamplingParams& sampling,
            std::optional<FinishReason> finish = FinishReason::kLength,
            bool last_is_stop_token = false) {
  std::vector<std::string> tokens = pieces;
  tokens.push_back("prompt");
  const testing::FakeTokenizer tokenizer(tokens);
  OutputProcessor processor(&tokenizer, sampling,
                            std::vector<int32_t>{static_cast<int32_t>(pieces.size())});
  Result result;
  for (size_t i = 0; i < pieces.size(); ++i) {
    TokenUpdate update{.token_id = static_cast<int32_t>(i)};
    if (i + 1 == pieces.size()) {
      update.finish_reason = finish;
      update.is_stop_token = last_is_stop_token;
      if (last_is_stop_token) update.stop_reason = update.token_id;
    }
    result.last = processor.Append(update);
    result.text += result.last.text;
    result.deltas.push_back(result.last.text);
    result.token_ids.insert(result.token_ids.end(), result.last.token_ids.begin(),
                            result.last.token_ids.end());
    if (result.last.finish_reason) break;
  }
  return result;
}

TEST(OutputProcessorTest, DeltasConcatenateAndCountTokens) {
  const Result result = Feed({"a", "b", "c"}, {});
  EXPECT_THAT(result.deltas, ElementsAre("a", "b", "c"));
  EXPECT_THAT(result.token_ids, ElementsAre(0, 1, 2));
  EXPECT_EQ(result.last.finish_reason, FinishReason::kLength);
  EXPECT_EQ(result.last.num_generated_tokens, 3);
  EXPECT_EQ(result.last.num_prompt_tokens, 1);
  EXPECT_THAT(result.last.logprobs, IsEmpty());
}

TEST(OutputProcessorTest, HalfCharactersWait) {
  EXPECT_THAT(Feed({"x\xe2", "\x82", "\xac", "y"}, {}).deltas,
              ElementsAre("x", "", "\xe2\x82\xac", "y"));
  EXPECT_EQ(Feed({"x", "\xe2\x82"}, {}).text, "x\xef\xbf\xbd");
}

TEST(OutputProcessorTest, AStopStringIsCutWhereverItLies) {
  const SamplingParams sampling{.stop = {"STOP"}};
  for (const std::vector<std::string>& pieces :
       std::vector<std::vector<std::string>>{{"ab", "STOP", "cd"},
                                             {"ab", "S", "T", "O", "P", "cd"},
                                             {"abST", "OPcd", "ef"},
                                             {"abSTOPcd"}}) {
    const Result result = Feed(pieces, sampling);
    EXPECT_EQ(result.text, "ab");
    EXPECT_EQ(result.last.finish_reason, FinishReason::kStop);
    EXPECT_EQ(std::get<std::string>(result.last.stop_reason), "STOP");
    SamplingParams include = sampling;
    include.include_stop_str_in_output = true;
    EXPECT_EQ(Feed(pieces, include).text, "abSTOP");
  }
}

TEST(OutputProcessorTest, TextThatOnlyBeganLikeAStopStringIsReleased) {
  const SamplingParams sampling{.stop = {"STOP"}};
  EXPECT_THAT(Feed({"aST", "O", "RE", "ST"}, sampling).deltas, ElementsAre("a", "", "STORE", "ST"));
}

TEST(OutputProcessorTest, MinTokensSuppressesStopStringsThatEndTooEarly) {
  SamplingParams sampling{.min_tokens = 2, .stop = {"ab"}};
  EXPECT_EQ(Feed({"ab", "xab", "y", "ab", "z"}, sampling).text, "abxaby");
  // Begun before, ended after: it counts, and nothing of it leaked.
  EXPECT_EQ(Feed({"x", "ya", "b", "z"}, sampling).text, "xy");
}

TEST(OutputProcessorTest, TheTextOfAStopTokenIsNotPartOfTheAnswer) {
  const Result result = Feed({"a", "<end>"}, {}, FinishReason::kStop, true);
  EXPECT_EQ(result.text, "a");
  EXPECT_THAT(result.token_ids, ElementsAre(0, 1));
  EXPECT_EQ(std::get<int32_t>(result.last.stop_reason), 1);
  EXPECT_EQ(
      Feed({"a", "<end>"}, {.include_stop_str_in_output = true}, FinishReason::kStop, true).text,
      "a<end>");
}

TEST(OutputProcessorTest, AnEndWithoutATokenReleasesWhatWasHeld) {
  const testing::FakeTokenizer tokenizer({"aST"});
  OutputProcessor processor(&tokenizer, {.stop = {"STOP"}}, std::vector<int32_t>{0});
  EXPECT_EQ(processor.Append({.token_id = 0}).text, "a");
  const RequestOutput last = processor.Finish(FinishReason::kError, Internal("why"));
  EXPECT_EQ(last.text, "ST");
  EXPECT_EQ(last.finish_reason, FinishReason::kError);
  EXPECT_EQ(last.error.message(), "why");
  EXPECT_EQ(last.num_generated_tokens, 1);
}

TEST(OutputProcessorTest, LogprobsComeWithTheirTokens) {
  const testing::FakeTokenizer tokenizer({"a"});
  OutputProcessor processor(&tokenizer, {.logprobs = 1}, std::vector<int32_t>{0});
  processor.set_num_cached_tokens(1);
  TokenUpdate update{.token_id = 0};
  update.logprobs = {.sampled = {0, -0.5F, 1}, .top = {{0, -0.5F, 1}}};
  const RequestOutput output = processor.Append(update);
  ASSERT_EQ(output.logprobs.size(), 1U);
  EXPECT_EQ(output.logprobs[0].sampled.logprob, -0.5F);
  EXPECT_EQ(output.logprobs[0].top.size(), 1U);
  EXPECT_EQ(output.num_cached_tokens, 1);
}

std::optional<size_t> FirstEnd(const std::string& text, const std::vector<std::string>& stop) {
  for (size_t end = 1; end <= text.size(); ++end) {
    for (const std::string& s : stop) {
      if (s.size() <= end && text.compare(end - s.size(), s.size(), s) == 0) return end;
    }
  }
  return std::nullopt;
}

// Random pieces with multi-byte characters cut anywhere: the answer is what a search of the whole
// text gives, and every delta is whole characters.
TEST(OutputProcessorTest, AgreesWithASearchOfTheWholeText) {
  testing::Random random(11);
  const std::vector<std::string> alphabet = {"a", "b", "\xc3\xa9", "\xe2\x82\xac"};
  const auto text_of = [&](int64_t length) {
    std::string text;
    for (; length > 0; --length) text += alphabet[static_cast<size_t>(random.Int(0, 3))];
    return text;
  };
  int num_stopped = 0;
  for (int round = 0; round < 3000; ++round) {
    const std::string whole = text_of(random.Int(1, 20));
    std::vector<std::string> pieces;
    for (size_t at = 0; at < whole.size();) {
      pieces.push_back(whole.substr(at, static_cast<size_t>(random.Int(1, 5))));
      at += pieces.back().size();
    }
    SamplingParams sampling{.max_tokens = 100};
    for (int64_t n = random.Int(1, 3); n > 0; --n)
      sampling.stop.push_back(text_of(random.Int(1, 4)));
    sampling.include_stop_str_in_output = random.Int(0, 1) != 0;

    const Result result = Feed(pieces, sampling);
    for (const std::string& delta : result.deltas) ASSERT_TRUE(IsValidUtf8(delta));
    const auto end = FirstEnd(whole, sampling.stop);
    if (!end) {
      ASSERT_EQ(result.text, whole);
      continue;
    }
    ++num_stopped;
    size_t longest = 0;
    for (const std::string& s : sampling.stop) {
      if (s.size() <= *end && whole.compare(*end - s.size(), s.size(), s) == 0) {
        longest = std::max(longest, s.size());
      }
    }
    ASSERT_EQ(result.text,
              whole.substr(0, sampling.include_stop_str_in_output ? *end : *end - longest));
    ASSERT_EQ(result.last.finish_reason, FinishReason::kStop);
  }
  EXPECT_GT(num_stopped, 1000);
}

}  // namespace
}  // namespace nibble::engine
