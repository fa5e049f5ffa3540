// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/byte_size.h"

#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::cli {
namespace {

TEST(ByteSizeTest, NumbersAndSuffixes) {
  const std::pair<const char*, int64_t> cases[] = {
      {"0", 0},
      {"-1", -1},  // for the range's check to refuse
      {"9223372036854775807", INT64_MAX},
      {"4GiB", int64_t{4} << 30},
      {"4G", int64_t{4} << 30},
      {"1.5G", int64_t{3} << 29},
      {"512MiB", int64_t{512} << 20},
      {"64K", 65536},
      {"64KiB", 65536},
      {"2T", int64_t{2} << 40},
      {"25.6k", 25600},
      {"4g", 4'000'000'000},
      {"7m", 7'000'000},
  };
  for (const auto& [text, bytes] : cases) {
    const absl::StatusOr<int64_t> parsed = ParseByteSize(text);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(*parsed, bytes) << text;
  }
}

TEST(ByteSizeTest, OthersAreRefusedWithTheFormThatIsWanted) {
  for (const char* text : {"", "G", "four", "4 GiB", "4GB", "4kiB", "4GiBs", "1.5", "0x10", "1e30G",
                           "9223372036854775808", "9000000000T", "nan", "inf"}) {
    const absl::StatusOr<int64_t> parsed = ParseByteSize(text);
    ASSERT_FALSE(parsed.ok()) << text;
    EXPECT_THAT(std::string(parsed.status().message()), ::testing::HasSubstr("as in 4GiB"));
  }
}

}  // namespace
}  // namespace nibble::cli
