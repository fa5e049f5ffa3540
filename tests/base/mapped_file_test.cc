// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/mapped_file.h"

#include "gtest/gtest.h"

#include "tests/testing/temp_dir.h"

namespace nibble {
namespace {

class MappedFileTest : public ::testing::Test {
 protected:
  std::string Write(std::string_view content) {
    dir_.Write("file", content);
    return dir_.File("file");
  }

 private:
  nibble::testing::TempDir dir_;
};

TEST_F(MappedFileTest, ReadsBytes) {
  const std::string path = Write(std::string_view("a\0b", 3));
  auto file = MappedFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  MappedFile moved = std::move(*file);
  ASSERT_EQ(moved.bytes().size(), 3U);
  EXPECT_EQ(moved.bytes()[2], 'b');
  EXPECT_EQ(moved.path(), path);
}

TEST_F(MappedFileTest, EmptyFileIsEmpty) {
  auto file = MappedFile::Open(Write(""));
  ASSERT_TRUE(file.ok());
  EXPECT_TRUE(file->bytes().empty());
}

TEST_F(MappedFileTest, ErrorsNameThePath) {
  EXPECT_EQ(MappedFile::Open("/nowhere/at/all").status().code(), absl::StatusCode::kNotFound);
  EXPECT_NE(MappedFile::Open("/nowhere/at/all").status().message().find("/nowhere/at/all"),
            std::string::npos);
  EXPECT_EQ(MappedFile::Open("/tmp").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(MappedFileTest, ReadFileRefusesLargeFiles) {
  const std::string path = Write("12345");
  EXPECT_EQ(ReadFile(path, 5).value(), "12345");
  EXPECT_FALSE(ReadFile(path, 4).ok());
}

}  // namespace
}  // namespace nibble
