// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/memory_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "gtest/gtest.h"

#include "base/mapped_file.h"

namespace nibble::cli {
namespace {

TEST(MemoryFileTest, OtherProcessesReadIt) {
  const std::string text(1'000'000, 'x');
  const auto file = MemoryFile::Create(text);
  ASSERT_TRUE(file.ok()) << file.status();
  const auto read = ReadFile((*file)->path(), 1 << 20);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_TRUE(*read == text);
  std::FILE* const count = popen(("wc -c < " + (*file)->path()).c_str(), "r");
  ASSERT_NE(count, nullptr);
  long num_bytes = 0;
  EXPECT_EQ(std::fscanf(count, "%ld", &num_bytes), 1);
  EXPECT_EQ(pclose(count), 0);
  EXPECT_EQ(num_bytes, 1'000'000);
}

TEST(MemoryFileTest, NobodyChangesItAndNothingIsLeft) {
  auto file = MemoryFile::Create("layout");
  ASSERT_TRUE(file.ok()) << file.status();
  const std::string path = (*file)->path();
  const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd >= 0) {
    EXPECT_LT(write(fd, "x", 1), 0);
    EXPECT_NE(ftruncate(fd, 0), 0);
    close(fd);
  }
  EXPECT_EQ(*ReadFile(path, 100), "layout");
  file->reset();
  EXPECT_NE(access(path.c_str(), R_OK), 0);
}

}  // namespace
}  // namespace nibble::cli
