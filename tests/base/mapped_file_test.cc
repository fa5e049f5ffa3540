// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/mapped_file.h"

#include <cstdio>
#include <fstream>

#include "gtest/gtest.h"

namespace nibble {
namespace {

std::string WriteTemporary(const std::string& name, const std::string& content) {
  std::string path = ::testing::TempDir() + name;
  std::ofstream(path, std::ios::binary) << content;
  return path;
}

TEST(MappedFileTest, ReadsBytes) {
  const std::string path = WriteTemporary("mapped_file_test", std::string("a\0b", 3));
  auto file = MappedFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  MappedFile moved = std::move(*file);
  ASSERT_EQ(moved.bytes().size(), 3U);
  EXPECT_EQ(moved.bytes()[2], 'b');
  EXPECT_EQ(moved.path(), path);
}

TEST(MappedFileTest, EmptyFileIsEmpty) {
  auto file = MappedFile::Open(WriteTemporary("mapped_file_empty", ""));
  ASSERT_TRUE(file.ok());
  EXPECT_TRUE(file->bytes().empty());
}

TEST(MappedFileTest, ErrorsNameThePath) {
  EXPECT_EQ(MappedFile::Open("/nowhere/at/all").status().code(), absl::StatusCode::kNotFound);
  EXPECT_NE(MappedFile::Open("/nowhere/at/all").status().message().find("/nowhere/at/all"),
            std::string::npos);
  EXPECT_EQ(MappedFile::Open("/tmp").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(MappedFileTest, ReadFileRefusesLargeFiles) {
  const std::string path = WriteTemporary("mapped_file_large", "12345");
  EXPECT_EQ(ReadFile(path, 5).value(), "12345");
  EXPECT_FALSE(ReadFile(path, 4).ok());
}

}  // namespace
}  // namespace nibble
