// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/json.h"

#include <string>

#include "gtest/gtest.h"

#include "base/utf8.h"

namespace nibble {
namespace {

TEST(JsonTest, ParsesAnObject) {
  const auto json = ParseJson(R"({"a": [1, 2.5, "x"]})");
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_EQ((*json)["a"][2], "x");
}

TEST(JsonTest, MalformedTextIsAnErrorWithPosition) {
  for (const char* text :
       {"", "{", "[1,]", "{\"a\":1}x", "\"\xff\"", "nul", "{\"a\" 1}", "1e999999"}) {
    const auto json = ParseJson(text);
    EXPECT_EQ(json.status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(JsonTest, MessagesAreShortAndValidUtf8) {
  const auto json = ParseJson("\"" + std::string(100'000, 'x') + "\xff");
  ASSERT_FALSE(json.ok());
  EXPECT_LT(json.status().message().size(), 300U);
  EXPECT_TRUE(IsValidUtf8(std::string(ParseJson("\"\xff\"").status().message())));
}

TEST(JsonTest, DepthIsLimited) {
  const std::string ok = std::string(64, '[') + std::string(64, ']');
  EXPECT_TRUE(ParseJson(ok).ok());
  for (int depth : {65, 100'000}) {
    const std::string deep = std::string(depth, '[') + std::string(depth, ']');
    const auto json = ParseJson(deep);
    ASSERT_FALSE(json.ok());
    EXPECT_NE(json.status().message().find("limit of 64"), std::string::npos);
  }
  EXPECT_FALSE(ParseJson(std::string(100'000, '[')).ok());
}

TEST(JsonTest, SizeIsLimited) {
  const auto json = ParseJson("[1, 2, 3]", {.max_bytes = 5});
  EXPECT_EQ(json.status().message(), "JSON of 9 bytes, the limit is 5");
}

}  // namespace
}  // namespace nibble
