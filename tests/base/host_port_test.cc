// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/host_port.h"

#include "gtest/gtest.h"

namespace nibble {
namespace {

TEST(HostPortTest, OnlyIpv6HasBrackets) {
  EXPECT_EQ(HostAndPort("10.0.0.1", 80), "10.0.0.1:80");
  EXPECT_EQ(HostAndPort("head.example", 29500), "head.example:29500");
  EXPECT_EQ(HostAndPort("::1", 80), "[::1]:80");
}

}  // namespace
}  // namespace nibble
