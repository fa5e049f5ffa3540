// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/cpu_list.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;

TEST(CpuListTest, NumbersAndRangesInTheOrderGiven) {
  EXPECT_THAT(ParseCpuList("0").value(), ElementsAre(0));
  EXPECT_THAT(ParseCpuList("8,0-3").value(), ElementsAre(8, 0, 1, 2, 3));
  EXPECT_THAT(ParseCpuList("5-5,1023").value(), ElementsAre(5, 1023));
}

TEST(CpuListTest, EverythingElseIsRefusedByName) {
  for (const char* text : {"", ",", "1,", "a", "-1", "3-1", "1024", "1-", "0 1", "1-2-3", "+1",
                           "99999999999999999999"}) {
    const auto cpus = ParseCpuList(text);
    ASSERT_FALSE(cpus.ok()) << text;
    EXPECT_NE(std::string(cpus.status().message()).find("'" + std::string(text) + "'"),
              std::string::npos)
        << cpus.status().message();
  }
  EXPECT_FALSE(ParseCpuList("0-3,2").ok());
}

}  // namespace
}  // namespace nibble
