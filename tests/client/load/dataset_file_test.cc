// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/load/dataset_file.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string PromptError(std::string_view text) {
  const auto requests = ParsePromptLines(text, 16);
  EXPECT_EQ(requests.status().code(), absl::StatusCode::kInvalidArgument) << text;
  return std::string(requests.status().message());
}

std::string TraceError(std::string_view text) {
  const auto requests = ParseTimedTrace(text);
  EXPECT_EQ(requests.status().code(), absl::StatusCode::kInvalidArgument) << text;
  return std::string(requests.status().message());
}

TEST(PromptLinesTest, TextsAndTokenIds) {
  const auto requests = ParsePromptLines(
      "{\"prompt\": \"Once\", \"output_tokens\": 5, \"more\": 1}\r\n\n  \n{\"prompt\": [1, 2]}",
      16);
  ASSERT_TRUE(requests.ok()) << requests.status();
  ASSERT_EQ(requests->size(), 2u);
  EXPECT_EQ((*requests)[0].text, "Once");
  EXPECT_EQ((*requests)[0].output_tokens, 5);
  EXPECT_THAT((*requests)[1].token_ids, ElementsAre(1, 2));
  EXPECT_EQ((*requests)[1].output_tokens, 16);
}

TEST(PromptLinesTest, ErrorsNameTheLineAndTheLimit) {
  EXPECT_THAT(PromptError(""), HasSubstr("no prompt"));
  EXPECT_THAT(PromptError("\n\n{\"prompt\": 3}"), HasSubstr("line 3: prompt: want a text"));
  EXPECT_THAT(PromptError("{\"text\": \"a\"}"), HasSubstr("line 1: there is no prompt"));
  EXPECT_THAT(PromptError("{\"prompt\": \"\"}"), HasSubstr("prompt is empty"));
  EXPECT_THAT(PromptError("{\"prompt\": []}"), HasSubstr("prompt: want a text"));
  EXPECT_THAT(PromptError("[1]"), HasSubstr("line 1: want a JSON object"));
  EXPECT_THAT(PromptError("{\"prompt\": \"a\"} x"), HasSubstr("line 1"));
  EXPECT_THAT(PromptError("{\"prompt\": [-1]}"), HasSubstr("token ids from 0 to 2147483647"));
  EXPECT_THAT(PromptError("{\"prompt\": [2147483648]}"), HasSubstr("token ids from 0"));
  EXPECT_THAT(PromptError("{\"prompt\": \"a\", \"output_tokens\": 0}"),
              HasSubstr("line 1: output_tokens is 0, want 1 to 4194304"));
  EXPECT_THAT(PromptError("{\"prompt\": \"a\", \"output_tokens\": 1.5}"),
              HasSubstr("output_tokens: want a whole number"));
  EXPECT_THAT(PromptError("{\"prompt\": \"a\", \"output_tokens\": 18446744073709551615}"),
              HasSubstr("output_tokens: want a whole number"));
}

TEST(TimedTraceTest, SecondsFromTheFirstRequest) {
  const auto requests = ParseTimedTrace(
      "{\"timestamp\": 12.5, \"input_tokens\": 100, \"output_tokens\": 7}\n"
      "{\"timestamp\": 10, \"prompt\": \"a\", \"output_tokens\": 3}\n");
  ASSERT_TRUE(requests.ok()) << requests.status();
  EXPECT_EQ((*requests)[0].text, "a");
  EXPECT_EQ((*requests)[0].timestamp, 0);
  EXPECT_EQ((*requests)[1].timestamp, 2.5);
  EXPECT_EQ((*requests)[1].input_tokens, 100);
  EXPECT_EQ((*requests)[1].output_tokens, 7);
}

TEST(TimedTraceTest, MooncakesAreInMilliseconds) {
  const auto requests = ParseTimedTrace(
      "{\"timestamp\": 0, \"input_length\": 6, \"output_length\": 5, \"hash_ids\": [0]}\n"
      "{\"timestamp\": 1500, \"input_length\": 7, \"output_length\": 5, \"hash_ids\": [0]}\n");
  ASSERT_TRUE(requests.ok()) << requests.status();
  EXPECT_EQ((*requests)[1].timestamp, 1.5);
  EXPECT_EQ((*requests)[1].input_tokens, 7);
}

TEST(TimedTraceTest, ErrorsNameTheLineAndTheLimit) {
  const std::string good = "{\"timestamp\": 0, \"input_tokens\": 1, \"output_tokens\": 1}\n";
  EXPECT_THAT(TraceError(good + "{\"input_tokens\": 1, \"output_tokens\": 1}"),
              HasSubstr("line 2: timestamp: want a number"));
  EXPECT_THAT(TraceError("{\"timestamp\": -1, \"input_tokens\": 1, \"output_tokens\": 1}"),
              HasSubstr("timestamp is -1, want 0 to"));
  EXPECT_THAT(TraceError("{\"timestamp\": 1e300, \"input_tokens\": 1, \"output_tokens\": 1}"),
              HasSubstr("timestamp is 1e+300, want 0 to"));
  EXPECT_THAT(
      TraceError(good + "{\"timestamp\": 1.5e9, \"input_tokens\": 1, \"output_tokens\": 1}"),
      HasSubstr("timestamps are 1500000000 seconds apart, the limit is 1000000000"));
  EXPECT_THAT(TraceError("{\"timestamp\": 0, \"input_tokens\": 1}"),
              HasSubstr("there is no output_tokens"));
  EXPECT_THAT(TraceError("{\"timestamp\": 0, \"output_tokens\": 1}"),
              HasSubstr("want prompt or input_tokens"));
  EXPECT_THAT(TraceError("{\"timestamp\": 0, \"input_length\": 0, \"output_length\": 1}"),
              HasSubstr("input_length is 0, want 1 to 4194304"));
}

}  // namespace
}  // namespace nibble::client
