// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/http/sse_parser.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::client {
namespace {

using ::testing::ElementsAre;

std::vector<std::string> Events(std::string_view text, size_t piece) {
  SseParser parser;
  std::vector<std::string> events;
  for (size_t at = 0; at < text.size(); at += piece) {
    parser.Feed(text.substr(at, piece), [&](std::string_view data) { events.emplace_back(data); });
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

}  // namespace
}  // namespace nibble::client
