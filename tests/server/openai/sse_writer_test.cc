// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/openai/sse_writer.h"

#include <cmath>
#include <limits>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "tests/server/admission/fakes.h"

namespace nibble::server {
namespace {

std::string Quoted(std::string_view text) {
  std::string out;
  AppendJsonString(text, &out);
  return out;
}

TEST(SseWriter, EscapesStrings) {
  EXPECT_EQ(Quoted("plain é 漢"), "\"plain é 漢\"");
  EXPECT_EQ(Quoted("a\"b\\c\nd\re\tf"), R"("a\"b\\c\nd\re\tf")");
  EXPECT_EQ(Quoted(std::string_view("\0\x1f\x7f", 3)), "\"\\u0000\\u001f\x7f\"");
  EXPECT_EQ(Quoted("a\xff"), "\"a\xef\xbf\xbd\"");
  EXPECT_EQ(Quoted(""), "\"\"");
}

TEST(SseWriter, EveryByteStringIsReadBackByAParser) {
  for (int first = 0; first < 256; ++first) {
    for (const int second : {0x00, 0x22, 0x5c, 0x6e, 0x80, 0xbf, 0xff}) {
      const std::string text = {static_cast<char>(first), static_cast<char>(second)};
      const auto parsed = nlohmann::json::parse(Quoted(text), nullptr, false);
      ASSERT_TRUE(parsed.is_string()) << first << " " << second;
      EXPECT_EQ(parsed.get<std::string>(), ReplaceInvalidUtf8(text));
    }
  }
}

TEST(SseWriter, LogprobsAreAlwaysNumbers) {
  const auto text = [](float value) {
    std::string out;
    AppendLogprob(value, &out);
    return out;
  };
  EXPECT_EQ(text(-0.5F), "-0.5");
  EXPECT_EQ(text(-std::numeric_limits<float>::infinity()), "-9999.0");
  EXPECT_EQ(text(std::nanf("")), "-9999.0");
  EXPECT_EQ(text(1e-7F), "0.0");  // rounding may put a certain token above one
  EXPECT_EQ(std::stof(text(-1.2345678F)), -1.2345678F);
}

TEST(SseWriter, ChatLogprobs) {
  const testing::FakeTokenizer tokenizer;
  std::string out;
  AppendChatLogprobs(
      {{.sampled = {.token_id = 'a', .logprob = -0.25F},
        .top = {{.token_id = 'a', .logprob = -0.25F}, {.token_id = 0xc3, .logprob = -2.0F}}},
       {.sampled = {.token_id = 257, .logprob = -1.0F}}},
      tokenizer, &out);
  EXPECT_EQ(out,
            "{\"content\":[{\"token\":\"a\",\"logprob\":-0.25,\"bytes\":[97],\"top_logprobs\":["
            "{\"token\":\"a\",\"logprob\":-0.25,\"bytes\":[97]},"
            "{\"token\":\"\xef\xbf\xbd\",\"logprob\":-2.0,\"bytes\":[195]}]},"
            "{\"token\":\"</s>\",\"logprob\":-1.0,\"bytes\":[60,47,115,62],\"top_logprobs\":[]}],"
            "\"refusal\":null}");
}

TEST(SseWriter, CompletionLogprobsCountCharactersAndMergeEqualNames) {
  const testing::FakeTokenizer tokenizer;
  int64_t offset = 7;
  std::string out;
  AppendCompletionLogprobs(
      {{.sampled = {.token_id = 'a', .logprob = -1.0F},
        .top = {{.token_id = 0xc3, .logprob = -0.5F}, {.token_id = 0xc4, .logprob = -0.75F}}},
       {.sampled = {.token_id = 'b', .logprob = -2.0F}}},
      tokenizer, &offset, &out);
  EXPECT_EQ(out,
            "{\"tokens\":[\"a\",\"b\"],\"token_logprobs\":[-1.0,-2.0],"
            "\"top_logprobs\":[{\"\xef\xbf\xbd\":-0.5,\"a\":-1.0},{\"b\":-2.0}],"
            "\"text_offset\":[7,8]}");
  EXPECT_EQ(offset, 9);
}

TEST(SseWriter, FinishAndStopReasons) {
  const auto text = [](engine::RequestOutput output) {
    std::string out;
    AppendFinish(output, &out);
    return out;
  };
  EXPECT_EQ(text({}), "\"finish_reason\":null,\"stop_reason\":null");
  EXPECT_EQ(text({.finish_reason = engine::FinishReason::kLength}),
            "\"finish_reason\":\"length\",\"stop_reason\":null");
  EXPECT_EQ(text({.finish_reason = engine::FinishReason::kStop, .stop_reason = "\n"}),
            "\"finish_reason\":\"stop\",\"stop_reason\":\"\\n\"");
  EXPECT_EQ(text({.finish_reason = engine::FinishReason::kStop, .stop_reason = 42}),
            "\"finish_reason\":\"stop\",\"stop_reason\":42");
}

}  // namespace
}  // namespace nibble::server
