// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/cluster/cluster_options.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "comm/cluster/addresses.h"

namespace nibble::comm {
namespace {

using ::testing::HasSubstr;

TEST(ClusterOptionsTest, AllViolationsAreNamed) {
  const ClusterSecurity security{.secret = std::string(16, 's')};
  EXPECT_TRUE(Validate({.num_nodes = 2, .ranks_per_node = 1}, {}, security, {}).ok());
  const std::string error =
      Validate(
          {.num_nodes = 1, .ranks_per_node = 257}, {.version = std::string(257, 'v')},
          {.secret = "s", .tls_ca = "ca"},
          {.interval = std::chrono::milliseconds(100), .timeout = std::chrono::milliseconds(150)})
          .ToString();
  EXPECT_THAT(error, HasSubstr("a cluster of 1 nodes: wanted are 2 to 256"));
  EXPECT_THAT(error, HasSubstr("257 ranks on a node: wanted are 1 to 256"));
  EXPECT_THAT(error, HasSubstr("version of 257 bytes, the limit is 256"));
  EXPECT_THAT(error, HasSubstr("secret has 1 bytes"));
  EXPECT_THAT(error, HasSubstr("one is missing"));
  EXPECT_THAT(error, HasSubstr("heartbeats every 100 ms with a timeout of 150 ms"));
}

TEST(AddressesTest, NumericAddresses) {
  EXPECT_TRUE(IsNumeric("10.0.0.1"));
  EXPECT_TRUE(IsNumeric("fe80::1%eth0"));
  EXPECT_FALSE(IsNumeric("localhost"));
  EXPECT_FALSE(IsNumeric(""));
  EXPECT_EQ(ToNumeric("127.0.0.1").value(), "127.0.0.1");
  EXPECT_EQ(LocalAddressTowards("127.0.0.1").value(), "127.0.0.1");
  EXPECT_FALSE(LocalAddressTowards("no.such.host.invalid").ok());
}

TEST(AddressesTest, EveryInterfaceHasManyNames) {
  for (const char* address :
       {"0.0.0.0", "::", "::0", "0::0", "0:0:0:0:0:0:0:0", "::%eth0", "::0.0.0.0", "::ffff:0:0"}) {
    EXPECT_TRUE(IsEveryInterface(address)) << address;
  }
  for (const char* address : {"10.0.0.0", "0.0.0.1", "::1", "::ffff:0:1", "", "host"}) {
    EXPECT_FALSE(IsEveryInterface(address)) << address;
  }
}

}  // namespace
}  // namespace nibble::comm
