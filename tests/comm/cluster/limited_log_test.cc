// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/cluster/limited_log.h"

#include <string>

#include "gtest/gtest.h"

namespace nibble::comm {
namespace {

TEST(PrintableTest, TextStaysAsItIs) {
  EXPECT_EQ(Printable("rank 1 at 10.0.0.2:5: \"no\" ~"), "rank 1 at 10.0.0.2:5: \"no\" ~");
  EXPECT_EQ(Printable(""), "");
}

TEST(PrintableTest, WhatBreaksALineOrIsNoTextIsItsNumber) {
  EXPECT_EQ(Printable("a\nb\x1b[2J\x7f\xff"), "a\\x0ab\\x1b[2J\\x7f\\xff");
  EXPECT_EQ(Printable(std::string("\0", 1)), "\\x00");
}

TEST(PrintableTest, LongTextIsCut) {
  EXPECT_EQ(Printable(std::string(1000, 'x')), std::string(1000, 'x'));
  EXPECT_EQ(Printable(std::string(1001, 'x')), std::string(1000, 'x') + "...");
}

}  // namespace
}  // namespace nibble::comm
