// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/file_watch.h"

#include <unistd.h>

#include <atomic>
#include <filesystem>

#include "gtest/gtest.h"

#include "tests/testing/temp_dir.h"

namespace nibble {
namespace {

bool Eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 2000; ++i) {
    if (condition()) return true;
    ::usleep(5000);
  }
  return false;
}

TEST(FileWatch, TellsOfEveryKindOfChange) {
  namespace fs = std::filesystem;
  const testing::TempDir folder;
  folder.Write("a", "1");
  fs::create_directory(folder.File("v1"));
  fs::create_directory(folder.File("v2"));
  folder.Write("v1/b", "1");
  folder.Write("v2/b", "1");
  fs::create_directory_symlink("v1", folder.File("data"));
  std::atomic<int> num_changes{0};
  const FileWatch watch({folder.File("a"), folder.File("data/b")}, std::chrono::milliseconds(2),
                        [&] { return num_changes.fetch_add(1) >= 0; });
  int seen = 0;
  const auto told = [&] {
    const bool is_told = Eventually([&] { return num_changes.load() > seen; });
    ::usleep(20'000);  // a change that is told in two goes is one
    seen = num_changes.load();
    return is_told;
  };
  folder.Write("a", "22");  // in place
  EXPECT_TRUE(told());
  folder.Write("new", "22");
  fs::rename(folder.File("new"), folder.File("a"));  // another file, same contents
  EXPECT_TRUE(told());
  fs::remove(folder.File("a"));
  EXPECT_TRUE(told());
  folder.Write("a", "22");
  EXPECT_TRUE(told());
  fs::create_directory_symlink("v2", folder.File("next"));
  fs::rename(folder.File("next"), folder.File("data"));
  EXPECT_TRUE(told());
}

TEST(FileWatch, TellsAgainUntilTheFilesAreUsed) {
  const testing::TempDir folder;
  folder.Write("a", "1");
  std::atomic<int> num_calls{0};
  const FileWatch watch({folder.File("a")}, std::chrono::milliseconds(1),
                        [&] { return num_calls.fetch_add(1) >= 3; });
  folder.Write("a", "22");
  EXPECT_TRUE(Eventually([&] { return num_calls.load() >= 4; }));
  const int seen = num_calls.load();  // a write in two goes may have been two changes
  ::usleep(20'000);
  EXPECT_EQ(num_calls.load(), seen);
}

TEST(FileWatch, SaysNothingOfFilesThatStay) {
  const testing::TempDir folder;
  folder.Write("a", "1");
  std::atomic<int> num_changes{0};
  {
    const FileWatch watch({folder.File("a"), folder.File("none")}, std::chrono::milliseconds(1),
                          [&] { return num_changes.fetch_add(1) >= 0; });
    ::usleep(50'000);
  }
  EXPECT_EQ(num_changes.load(), 0);
}

}  // namespace
}  // namespace nibble
