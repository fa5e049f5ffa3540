// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/auth/api_keys.h"

#include <openssl/evp.h>
#include <unistd.h>

#include <filesystem>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/testing/temp_dir.h"

namespace nibble::server {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr std::chrono::milliseconds kPeriod{5};

bool Eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 2000; ++i) {
    if (condition()) return true;
    ::usleep(5000);
  }
  return false;
}

std::string ErrorOf(const ApiKeyConfig& config) {
  const auto keys = ApiKeys::Create(config);
  return keys.ok() ? "" : std::string(keys.status().message());
}

TEST(ApiKeys, AllGivenKeysOpen) {
  const nibble::testing::TempDir folder;
  folder.Write("keys", "# first line\n\n  one \r\ntwo\n#no\nthree");
  const auto keys = ApiKeys::Create({.keys = {"zero", "z"}, .file = folder.File("keys")});
  ASSERT_TRUE(keys.ok()) << keys.status();
  EXPECT_EQ((*keys)->size(), 5U);
  for (const char* key : {"zero", "z", "one", "two", "three"}) {
    EXPECT_TRUE((*keys)->Contains(key)) << key;
  }
  for (const char* key : {"", "zer", "zeroo", "Zero", "no", "#no", "one ", "first"}) {
    EXPECT_FALSE((*keys)->Contains(key)) << key;
  }
}

TEST(ApiKeys, ErrorsNameThePlaceAndNoKey) {
  const nibble::testing::TempDir folder;
  EXPECT_THAT(ErrorOf({}), HasSubstr("no API key"));
  EXPECT_THAT(ErrorOf({.keys = {"good", ""}}), HasSubstr("--api-key, or NIBBLE_API_KEY"));
  EXPECT_THAT(ErrorOf({.file = folder.File("none")}), HasSubstr("none"));
  folder.Write("empty", "# nothing\n\n");
  EXPECT_THAT(ErrorOf({.file = folder.File("empty")}), HasSubstr("has no key"));
  folder.Write("bad", "good\n\nse cret\n");
  EXPECT_THAT(ErrorOf({.file = folder.File("bad")}), HasSubstr("line 3"));
  EXPECT_THAT(ErrorOf({.file = folder.File("bad")}), Not(HasSubstr("cret")));
  std::string many;
  for (size_t i = 0; i <= ApiKeys::kMaxKeys; ++i) many += "k" + std::to_string(i) + "\n";
  folder.Write("many", many);
  EXPECT_THAT(ErrorOf({.file = folder.File("many")}), HasSubstr("4096"));
}

TEST(ApiKeys, WithoutADigestNoKeyOpens) {
  const auto keys = *ApiKeys::Create({.keys = {"key"}});
  ASSERT_EQ(EVP_set_default_properties(nullptr, "provider=none"), 1);
  EXPECT_FALSE(keys->Contains("key"));
  EXPECT_FALSE(keys->Contains("another"));
  EXPECT_THAT(ErrorOf({.keys = {"key"}}), HasSubstr("SHA-256"));
  const nibble::testing::TempDir folder;
  folder.Write("keys", "key\n");
  EXPECT_THAT(ErrorOf({.file = folder.File("keys")}), HasSubstr("SHA-256"));
  ASSERT_EQ(EVP_set_default_properties(nullptr, ""), 1);
  EXPECT_TRUE(keys->Contains("key"));
}

TEST(ApiKeys, AChangedFileIsReadAgain) {
  const nibble::testing::TempDir folder;
  folder.Write("keys", "old\n");
  const auto keys =
      *ApiKeys::Create({.keys = {"given"}, .file = folder.File("keys"), .period = kPeriod});
  folder.Write("new", "new\n");
  std::filesystem::rename(folder.File("new"), folder.File("keys"));
  EXPECT_TRUE(Eventually([&] { return keys->Contains("new"); }));
  EXPECT_FALSE(keys->Contains("old"));
  EXPECT_TRUE(keys->Contains("given"));
}

TEST(ApiKeys, ABadChangeLeavesTheKeys) {
  const nibble::testing::TempDir folder;
  folder.Write("keys", "old\n");
  const auto keys = *ApiKeys::Create({.file = folder.File("keys"), .period = kPeriod});
  EXPECT_EQ(keys->num_file_errors(), 0);
  EXPECT_FALSE(keys->file_is_stale());
  folder.Write("keys", "not good\n");
  EXPECT_TRUE(Eventually([&] { return keys->num_file_errors() == 1; }));
  EXPECT_TRUE(keys->Contains("old"));
  EXPECT_TRUE(keys->file_is_stale());
  std::filesystem::remove(folder.File("keys"));
  EXPECT_TRUE(Eventually([&] { return keys->num_file_errors() == 2; }));
  folder.Write("keys", "");
  EXPECT_TRUE(Eventually([&] { return keys->num_file_errors() == 3; }));
  EXPECT_TRUE(keys->Contains("old"));
  folder.Write("keys", "good\n");
  EXPECT_TRUE(Eventually([&] { return keys->Contains("good"); }));
  EXPECT_FALSE(keys->Contains("old"));
  EXPECT_FALSE(keys->file_is_stale());
  EXPECT_EQ(keys->num_file_errors(), 3);
}

}  // namespace
}  // namespace nibble::server
