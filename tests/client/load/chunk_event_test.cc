// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/load/chunk_event.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::client {
namespace {

ChunkEvent Parse(std::string_view json, bool chat = false) {
  ChunkEvent event;
  EXPECT_TRUE(ParseChunkEvent(json, chat, &event)) << json;
  return event;
}

TEST(ChunkEventTest, ACompletionsChoiceIsATokenAlsoWithoutText) {
  EXPECT_TRUE(Parse(R"({"id":"x","choices":[{"index":0,"text":"a"}],"usage":null})").has_tokens);
  EXPECT_TRUE(Parse(R"({"choices":[{"text":""}]})").has_tokens);
  EXPECT_FALSE(Parse(R"({"choices":[]})").has_tokens);
  EXPECT_FALSE(Parse(R"({"other":[{"text":"a"}]})").has_tokens);
}

TEST(ChunkEventTest, AChatsRoleIsNoToken) {
  EXPECT_FALSE(Parse(R"({"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]})", true)
                   .has_tokens);
  EXPECT_TRUE(Parse(R"({"choices":[{"delta":{"content":"a"}}]})", true).has_tokens);
  EXPECT_TRUE(Parse(R"({"choices":[{"delta":{"reasoning_content":"a"}}]})", true).has_tokens);
  EXPECT_TRUE(Parse(R"({"choices":[{"delta":{"tool_calls":[{"index":0,"function":{}}]}}]})", true)
                  .has_tokens);
  EXPECT_FALSE(Parse(R"({"choices":[{"message":{"content":"a"}}]})", true).has_tokens);
}

TEST(ChunkEventTest, UsageAndFinishReason) {
  const ChunkEvent last = Parse(
      R"({"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":34,"total_tokens":46,
          "prompt_tokens_details":{"cached_tokens":8,"completion_tokens":1}}})");
  EXPECT_EQ(last.prompt_tokens, 12);
  EXPECT_EQ(last.completion_tokens, 34);
  EXPECT_FALSE(last.has_tokens);
  EXPECT_EQ(Parse(R"({"choices":[{"text":"a","finish_reason":"length"}]})").finish_reason,
            "length");
  EXPECT_EQ(Parse(R"({"choices":[{"text":"a","finish_reason":null}]})").finish_reason, "");
  EXPECT_EQ(Parse(R"({"usage":{"completion_tokens":18446744073709551615}})").completion_tokens, -1);
}

TEST(ChunkEventTest, Errors) {
  EXPECT_EQ(Parse(R"({"error":{"message":"no","type":"t","code":429}})").error, "no");
  EXPECT_EQ(Parse(R"({"error":"no"})").error, "no");
  EXPECT_TRUE(Parse(R"({"error":{"code":1}})").is_error);
  EXPECT_FALSE(Parse(R"({"error":null,"choices":[]})").is_error);
}

TEST(ChunkEventTest, AnEventIsOverwritten) {
  ChunkEvent event;
  ASSERT_TRUE(
      ParseChunkEvent(R"({"choices":[{"text":"a","finish_reason":"stop"}]})", false, &event));
  ASSERT_TRUE(ParseChunkEvent("{}", false, &event));
  EXPECT_FALSE(event.has_tokens);
  EXPECT_EQ(event.finish_reason, "");
}

TEST(ChunkEventTest, WhatIsNotJson) {
  ChunkEvent event;
  for (const char* text : {"", "[DONE]", "{", "{\"a\":1e999}", "\xff", "{}x"}) {
    EXPECT_FALSE(ParseChunkEvent(text, false, &event)) << text;
  }
  EXPECT_TRUE(ParseChunkEvent(std::string(100'000, '[') + std::string(100'000, ']'), true, &event));
}

}  // namespace
}  // namespace nibble::client
