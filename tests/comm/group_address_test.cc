// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/group_address.h"

#include <string>

#include "gtest/gtest.h"

namespace nibble::comm {
namespace {

const GroupAddress kAddress = {.rank = 3,
                               .size = 0x01020304,
                               .generation = 0x1122334455667788,
                               .group_id = "group-1",
                               .network = std::string("\0any\xff", 5)};

TEST(GroupAddress, ReadBack) {
  const absl::StatusOr<GroupAddress> parsed = ParseGroupAddress(Serialize(kAddress));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(*parsed, kAddress);
  EXPECT_EQ(*ParseGroupAddress(Serialize({})), GroupAddress{});
}

TEST(GroupAddress, WhatIsNoneIsRefused) {
  const std::string bytes = Serialize(kAddress);
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_EQ(ParseGroupAddress(bytes.substr(0, size)).status().code(),
              absl::StatusCode::kInvalidArgument)
        << size;
  }
  EXPECT_FALSE(ParseGroupAddress(bytes + "x").ok());
  EXPECT_FALSE(ParseGroupAddress("x" + bytes.substr(1)).ok());
  EXPECT_FALSE(ParseGroupAddress(bytes + std::string(kMaxGroupAddressBytes, 'x')).ok());
}

}  // namespace
}  // namespace nibble::comm
