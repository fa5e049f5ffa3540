// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/auth/authorization.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::server {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string KeyOf(std::string_view header) {
  const auto credential = ParseAuthorization(header);
  return credential.has_value() ? credential->key : "-";
}

TEST(Authorization, BearerIsOneWordBehindAnySpaces) {
  EXPECT_EQ(KeyOf("Bearer abc"), "abc");
  EXPECT_EQ(KeyOf("bEARER    abc  "), "abc");
  EXPECT_FALSE(ParseAuthorization("Bearer abc")->by_basic);
  for (const char* bad : {"", "Bearer", "Bearer ", "Bearer   ", "Bearer a b", "Bearerabc", "abc",
                          " Bearer abc", "Bearer a\tb", "Token abc", "Bearer \xc3\xa4"}) {
    EXPECT_EQ(KeyOf(bad), "-") << bad;
  }
}

TEST(Authorization, BasicGivesThePassword) {
  EXPECT_EQ(KeyOf("Basic dTprZXk="), "key");   // u:key
  EXPECT_EQ(KeyOf("basic OmtleQ=="), "key");   // :key
  EXPECT_EQ(KeyOf("Basic dTprOmV5"), "k:ey");  // u:k:ey: only the first colon parts
  EXPECT_TRUE(ParseAuthorization("Basic dTprZXk=")->by_basic);
  for (const char* bad : {"Basic dTo=", "Basic a2V5", "Basic dTprZXk",
                          "Basic dTprZXl=", "Basic dTprZXk==", "Basic dTpr=ZXk",
                          "Basic ====", "Basic dTprZX!=", "Basic dTprIGV5", "Basic"}) {
    EXPECT_EQ(KeyOf(bad), "-") << bad;
  }
}

TEST(Authorization, KeysHaveALength) {
  const std::string longest(kMaxApiKeyBytes, 'k');
  EXPECT_EQ(KeyOf("Bearer " + longest), longest);
  EXPECT_EQ(KeyOf("Bearer " + longest + "k"), "-");
  EXPECT_EQ(KeyOf("Basic " + std::string(1 << 20, 'A')), "-");
}

TEST(Authorization, WeakKeysAreRefusedWithoutBeingShown) {
  EXPECT_TRUE(CheckApiKey("sk-Az09_~!").ok());
  for (const std::string& bad :
       {std::string(), std::string("se cret"), std::string("secret\n"),
        std::string("s\xc3\xa9"
                    "cret"),
        std::string("secret\0", 7), std::string(kMaxApiKeyBytes + 1, 's')}) {
    const absl::Status status = CheckApiKey(bad);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("cret")));
  }
}

}  // namespace
}  // namespace nibble::server
