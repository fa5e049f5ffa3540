// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/replace_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/mapped_file.h"
#include "tests/testing/temp_dir.h"

namespace nibble::cli {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class ReplaceFileTest : public ::testing::Test {
 protected:
  std::string Path(const std::string& name) const { return folder_.path() + "/" + name; }
  static std::string TextOf(const std::string& path) {
    const auto text = ReadFile(path, 1 << 20);
    return text.ok() ? *text : "?";
  }
  // Nothing but what the test made.
  int64_t NumFiles() const {
    return std::distance(fs::directory_iterator(folder_.path()), fs::directory_iterator());
  }

  testing::TempDir folder_;
};

TEST_F(ReplaceFileTest, AFileIsMadeAndReplaced) {
  for (const char* text : {"first", "second"}) {
    EXPECT_TRUE(CheckReplaceable(Path("a")).ok());
    ASSERT_TRUE(ReplaceFile(Path("a"), text).ok());
    EXPECT_EQ(TextOf(Path("a")), text);
  }
  EXPECT_EQ(NumFiles(), 1);
}

TEST_F(ReplaceFileTest, ALinkStaysAndItsFileIsReplaced) {
  fs::create_directory(Path("folder"));
  std::ofstream(Path("folder/file")) << "old";
  fs::create_symlink("folder/file", Path("link"));          // relative to its own folder
  fs::create_symlink(Path("link"), Path("second"));         // a chain
  fs::create_symlink("folder/new", Path("leads-nowhere"));  // until it is written
  for (const char* name : {"link", "second", "leads-nowhere"}) {
    EXPECT_TRUE(CheckReplaceable(Path(name)).ok());
    ASSERT_TRUE(ReplaceFile(Path(name), name).ok());
    EXPECT_TRUE(fs::is_symlink(Path(name))) << name;
    EXPECT_EQ(TextOf(Path(name)), name);
  }
  EXPECT_EQ(TextOf(Path("folder/file")), "second");
  fs::create_symlink("circle", Path("circle"));
  EXPECT_THAT(std::string(ReplaceFile(Path("circle"), "text").message()), HasSubstr("circle"));
}

TEST_F(ReplaceFileTest, APipeIsWrittenTo) {
  ASSERT_EQ(::mkfifo(Path("pipe").c_str(), 0600), 0);
  // Nobody reads: no wait for somebody.
  EXPECT_THAT(std::string(ReplaceFile(Path("pipe"), "text").message()), HasSubstr(Path("pipe")));
  const int reader = ::open(Path("pipe").c_str(), O_RDONLY | O_NONBLOCK);
  ASSERT_GE(reader, 0);
  EXPECT_TRUE(CheckReplaceable(Path("pipe")).ok());
  EXPECT_TRUE(ReplaceFile(Path("pipe"), "text").ok());
  char text[8] = {};
  EXPECT_EQ(::read(reader, text, sizeof(text)), 4);
  EXPECT_STREQ(text, "text");
  ::close(reader);
  EXPECT_TRUE(fs::is_fifo(Path("pipe")));
  EXPECT_EQ(NumFiles(), 1);
}

// Behind a link, so that a version which replaces it harms no machine.
TEST_F(ReplaceFileTest, ADeviceStaysAndItsErrorIsTold) {
  for (const char* device : {"/dev/full", "/dev/null"}) {
    fs::create_symlink(device, Path("device"));
    EXPECT_TRUE(CheckReplaceable(Path("device")).ok());
    const absl::Status written = ReplaceFile(Path("device"), "text");
    if (device == std::string("/dev/full")) {
      EXPECT_THAT(std::string(written.message()),
                  HasSubstr("device cannot be written: No space left on device"));
    } else {
      EXPECT_TRUE(written.ok()) << written;
    }
    EXPECT_TRUE(fs::is_character_file(Path("device")));
    EXPECT_TRUE(fs::is_symlink(Path("device")));
    fs::remove(Path("device"));
  }
}

TEST_F(ReplaceFileTest, WhatIsOpenIsWrittenToByItsNumber) {
  const int file = ::open(Path("file").c_str(), O_WRONLY | O_CREAT, 0600);
  ASSERT_GE(file, 0);
  const ino_t inode = [&] {
    struct stat there = {};
    return ::fstat(file, &there) == 0 ? there.st_ino : 0;
  }();
  ASSERT_TRUE(ReplaceFile("/dev/fd/" + std::to_string(file), "text").ok());
  ::close(file);
  struct stat there = {};
  ASSERT_EQ(::stat(Path("file").c_str(), &there), 0);
  EXPECT_EQ(there.st_ino, inode);
  EXPECT_EQ(TextOf(Path("file")), "text");
}

TEST_F(ReplaceFileTest, ErrorsNamePathAndReason) {
  for (const auto& status :
       {ReplaceFile(Path("none/file"), ""), CheckReplaceable(Path("none/file"))}) {
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(Path("none/file") + " cannot be written: No such file or directory"));
  }
  EXPECT_THAT(std::string(CheckReplaceable(folder_.path()).message()),
              HasSubstr(folder_.path() + " is a directory"));
  EXPECT_EQ(NumFiles(), 0);
}

}  // namespace
}  // namespace nibble::cli
