// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/utf8.h"

#include "gtest/gtest.h"

namespace nibble {
namespace {

TEST(Utf8Test, Validity) {
  for (const char* good :
       {"", "a", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xf4\x8f\xbf\xbf"}) {
    EXPECT_TRUE(IsValidUtf8(good)) << good;
  }
  for (const char* bad : {"\x80", "\xc0\xaf", "\xc3", "\xed\xa0\x80", "\xe0\x80\x80",
                          "\xf4\x90\x80\x80", "\xf0\x9f\x98", "\xff", "a\xc3(b"}) {
    EXPECT_FALSE(IsValidUtf8(bad));
  }
}

TEST(Utf8Test, CompletePrefixHoldsBackOnlyUnfinishedCharacters) {
  EXPECT_EQ(CompleteUtf8Prefix("abc"), 3U);
  EXPECT_EQ(CompleteUtf8Prefix("ab\xe2"), 2U);
  EXPECT_EQ(CompleteUtf8Prefix("ab\xe2\x82"), 2U);
  EXPECT_EQ(CompleteUtf8Prefix("ab\xe2\x82\xac"), 5U);
  EXPECT_EQ(CompleteUtf8Prefix("\xf0\x9f\x98"), 0U);
  EXPECT_EQ(CompleteUtf8Prefix("a\x80"), 2U);  // can never become a character
  EXPECT_EQ(CompleteUtf8Prefix("a\xff"), 2U);
  EXPECT_EQ(CompleteUtf8Prefix("\xed\xa0"), 2U);  // a surrogate: invalid whatever follows
  EXPECT_EQ(CompleteUtf8Prefix("\x80\x80\x80\x80"), 4U);
}

TEST(Utf8Test, InvalidSequencesBecomeReplacementCharacters) {
  EXPECT_EQ(ReplaceInvalidUtf8("a\xffz"), "a\xef\xbf\xbdz");
  EXPECT_EQ(ReplaceInvalidUtf8("\xe2\x82z"), "\xef\xbf\xbdz");
  EXPECT_EQ(ReplaceInvalidUtf8("\xed\xa0\x80"), "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");
  EXPECT_EQ(ReplaceInvalidUtf8("\xc3\xa9"), "\xc3\xa9");
}

}  // namespace
}  // namespace nibble
