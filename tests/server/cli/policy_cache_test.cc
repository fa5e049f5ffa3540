// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/policy_cache.h"

#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

#include "fmt/core.h"
#include "gtest/gtest.h"

namespace nibble::cli {
namespace {

namespace fs = std::filesystem;

class PolicyCacheTest : public ::testing::Test {
 protected:
  PolicyCacheTest() : dir_(fs::temp_directory_path() / fmt::format("nibble-pc-{}", getpid())) {
    fs::remove_all(dir_);
  }
  ~PolicyCacheTest() override { fs::remove_all(dir_); }

  static comm::AllReducePolicy Policy() {
    comm::AllReducePolicy policy;
    policy.choices.push_back({.max_bytes = 65536, .algorithm = comm::Algorithm::kOneShot});
    policy.choices.push_back({.max_bytes = std::numeric_limits<int64_t>::max(),
                              .algorithm = comm::Algorithm::kTwoShot,
                              .codec = {.bits = 4}});
    return policy;
  }

  const fs::path dir_;
};

TEST_F(PolicyCacheTest, WhatWasStoredIsLoadedForTheSameKeyOnly) {
  const PolicyCache cache(dir_.string() + "/deep", "nibble 1 row 256");
  EXPECT_FALSE(cache.Load().has_value());
  ASSERT_TRUE(cache.Store(Policy()).ok());
  EXPECT_EQ(cache.Load()->choices, Policy().choices);
  EXPECT_FALSE(PolicyCache(dir_.string() + "/deep", "nibble 1 row 512").Load().has_value());
  // One file, nothing left of its making.
  EXPECT_EQ(std::distance(fs::directory_iterator(dir_ / "deep"), fs::directory_iterator()), 1);
}

TEST_F(PolicyCacheTest, WhatMakesNoSenseIsNotUsed) {
  const PolicyCache cache(dir_.string(), "key");
  ASSERT_TRUE(cache.Store(Policy()).ok());
  std::ofstream(cache.path()) << "key\nint4 for everybody";
  EXPECT_FALSE(cache.Load().has_value());
  std::ofstream(cache.path()) << "another key\n";
  EXPECT_FALSE(cache.Load().has_value());
  std::ofstream(cache.path()) << "";
  EXPECT_FALSE(cache.Load().has_value());
}

TEST_F(PolicyCacheTest, WithoutAFolderNothingIsKept) {
  const PolicyCache cache("", "key");
  EXPECT_TRUE(cache.Store(Policy()).ok());
  EXPECT_FALSE(cache.Load().has_value());
}

}  // namespace
}  // namespace nibble::cli
