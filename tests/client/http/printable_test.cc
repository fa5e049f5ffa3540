// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/http/printable.h"

#include "gtest/gtest.h"

namespace nibble::client {
namespace {

TEST(PrintableTest, WhatATerminalWouldObeyIsASpace) {
  EXPECT_EQ(PrintableText("a\x1b[31mb\x07\r\n\tc\x7f"), "a [31mb    c ");
  EXPECT_EQ(PrintableText("\xc2\x9b"
                          "31m \xc2\xa0"),
            " 31m \xc2\xa0");  // C1's escape; a hard space
  EXPECT_EQ(PrintableText("a\xe2\x80\xae"
                          "b\xe2\x81\xa6"
                          "c"),
            "a b c");  // turned around
  EXPECT_EQ(PrintableText("a\xff"
                          "b"),
            "a\xef\xbf\xbd"
            "b");
  EXPECT_EQ(PrintableText(std::string("a\0b", 3)), "a b");
  EXPECT_EQ(PrintableText("Grüße, ☃ 🦊"), "Grüße, ☃ 🦊");
}

TEST(PrintableTest, AnswersKeepTheirLines) {
  EXPECT_EQ(PrintableText("a\n\tb\x1b[2Jc\r", true), "a\n\tb [2Jc ");
}

TEST(PrintableTest, MessagesAreCutBetweenCharacters) {
  EXPECT_EQ(PrintableMessage("abcdef", 6), "abcdef");
  EXPECT_EQ(PrintableMessage("abcdef", 5), "abcde...");
  EXPECT_EQ(PrintableMessage("ab☃", 4), "ab...");
  EXPECT_EQ(PrintableMessage("a\nb", 9), "a b");
}

}  // namespace
}  // namespace nibble::client
