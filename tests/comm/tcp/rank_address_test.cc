// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/tcp/rank_address.h"

#include <cstring>
#include <string>

#include "gtest/gtest.h"

#include "tests/testing/random.h"

namespace nibble::comm {
namespace {

RankAddress Example() {
  return {.generation = 12,
          .nonce = 0x1234567890abcdef,
          .rank = 3,
          .size = 4,
          .port = 40123,
          .group_id = "a-group",
          .host = "10.0.0.4",
          .worker = std::string("\0\1\2\377 any", 8)};
}

TEST(RankAddress, ReadsWhatItWrote) {
  const auto parsed = RankAddress::Parse(Example().Serialize());
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(*parsed, Example());
}

TEST(RankAddress, RefusesEveryOtherLengthAndBit) {
  const std::string bytes = Example().Serialize();
  for (size_t length = 0; length < bytes.size(); ++length) {
    EXPECT_TRUE(absl::IsInvalidArgument(RankAddress::Parse(bytes.substr(0, length)).status()));
  }
  EXPECT_FALSE(RankAddress::Parse(bytes + "x").ok());
  EXPECT_FALSE(RankAddress::Parse(std::string(10'000, 'x')).ok());
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    std::string garbled = bytes;
    garbled[bit / 8] = static_cast<char>(garbled[bit / 8] ^ (1 << (bit % 8)));
    EXPECT_TRUE(absl::IsInvalidArgument(RankAddress::Parse(garbled).status())) << "bit " << bit;
  }
}

// With a checksum that is right: the fields themselves are checked.
TEST(RankAddress, RefusesFieldsThatMakeNoSense) {
  const std::string bytes = Example().Serialize();
  const auto with = [&bytes](size_t at, uint16_t value) {
    std::string changed = bytes;
    std::memcpy(changed.data() + at, &value, sizeof(value));
    const uint64_t checksum = AddressChecksum(std::string_view(changed).substr(16));
    std::memcpy(changed.data() + 8, &checksum, sizeof(checksum));
    return RankAddress::Parse(changed).status();
  };
  EXPECT_TRUE(with(40, 99).ok()) << "the port may be any";
  EXPECT_FALSE(with(32, 4).ok()) << "rank 4 of 4";
  EXPECT_FALSE(with(34, 1).ok()) << "rank 65539";
  EXPECT_FALSE(with(36, 0).ok()) << "size 0";
  EXPECT_FALSE(with(38, 1).ok()) << "size 65540";
  for (const size_t length_at : {42U, 44U, 46U}) {
    for (const int length : {0, 6, 9, 200, 65535}) {
      EXPECT_FALSE(with(length_at, static_cast<uint16_t>(length)).ok()) << length_at;
    }
  }
}

}  // namespace
}  // namespace nibble::comm
