// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/http/sse_parser.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::client {
namespace {

using ::testing::ElementsAre;

std::vector<std::string> Events(std::string_view text, size_t piece,
                                size_t limit = SseParser::kMaxEventBytes) {
  SseParser parser(limit);
  std::vector<std::string> events;
  for (size_t at = 0; at < text.size(); at += piece) {
    const bool fits = parser.Feed(text.substr(at, piece),
                                  [&](std::string_view data) { events.emplace_back(data); });
    if (fits) continue;
    EXPECT_FALSE(parser.Feed("\n\ndata: x\n\n", [](std::string_view) { ADD_FAILURE(); }));
    events.push_back(parser.LimitError());
    break;
  }
  return events;
}

TEST(SseParserTest, EventsComeOutWhereverTheBytesAreCut) {
  constexpr std::string_view kText =
      ": comment\ndata: {\"a\": 1}\n\ndata:two\r\n\r\nevent: x\nid: 3\ndata: l1\ndata: "
      "l2\n\n\n\ndata: [DONE]\n\n";
  for (size_t piece = 1; piece <= kText.size(); ++piece) {
    EXPECT_THAT(Events(kText, piece), ElementsAre("{\"a\": 1}", "two", "l1\nl2", "[DONE]"))
        << piece;
  }
}

TEST(SseParserTest, AnUnfinishedEventIsNotDelivered) {
  EXPECT_THAT(Events("data: x\n", 3), ElementsAre());
}

TEST(SseParserTest, WhatIsTooLargeEndsTheStreamWhereverTheBytesAreCut) {
  constexpr std::string_view kLine = "data: 12\n\ndata: 45678\n\ndata: 3\n\n";
  constexpr std::string_view kLines = "data: 12\n\ndata: 4567\ndata: 45678\n\ndata: 3\n\n";
  for (size_t piece = 1; piece <= kLines.size(); ++piece) {
    EXPECT_THAT(Events(kLine, piece, 10), ElementsAre("12", "an event of more than 10 bytes"));
    EXPECT_THAT(Events(kLine, piece, 11), ElementsAre("12", "45678", "3"));
    EXPECT_THAT(Events(kLines, piece, 11), ElementsAre("12", "4567\n45678", "3")) << piece;
  }
  const std::string many = "data: " + std::string(5, 'x') + "\n";
  EXPECT_THAT(Events(many + many + many + "\n", 4, 16),
              ElementsAre("an event of more than 16 bytes"));
}

}  // namespace
}  // namespace nibble::client
