// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/shm/stale_names.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "gtest/gtest.h"

#include "comm/shm/segment.h"
#include "comm/shm/segment_layout.h"
#include "tests/comm/shm/child_process.h"

namespace nibble::comm {
namespace {

class StaleNamesTest : public ::testing::Test {
 protected:
  void TearDown() override { RemoveSegmentNames(group_id_, 0); }

  std::unique_ptr<ShmSegment> Prepare() const {
    return *ShmSegment::Prepare({.rank = 0, .num_ranks = 2, .group_id = group_id_});
  }
  bool NameExists() const {
    const int fd = shm_open(Prepare()->name().c_str(), O_RDONLY, 0);
    if (fd >= 0) close(fd);
    return fd >= 0;
  }

  // Whether its maker has written who it is.
  bool MakerSits() const {
    const int fd = shm_open(Prepare()->name().c_str(), O_RDONLY, 0);
    if (fd < 0) return false;
    int32_t pid = 0;
    const size_t at = shm::Layout::For(2).doorbells + offsetof(shm::Doorbell, pid);
    const bool read = pread(fd, &pid, sizeof(pid), static_cast<off_t>(at)) == sizeof(pid);
    close(fd);
    return read && pid != 0;
  }

  const std::string group_id_ = "stale-" + std::to_string(getpid());
};

TEST_F(StaleNamesTest, NamesOfTheDeadAreRemovedAndThoseOfTheLivingAreNot) {
  const ChildProcess maker([&] {
    // The other rank never comes.
    return Prepare()->Connect(Deadline::After(std::chrono::seconds(100))).ToString();
  });
  while (!MakerSits()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_EQ(RemoveStaleNames(group_id_), 0);
  EXPECT_TRUE(NameExists());

  // A zombie is as dead as one that was waited for.
  kill(maker.pid(), SIGKILL);
  int removed = 0;
  for (int i = 0; i < 10'000 && removed == 0; ++i) {
    removed = RemoveStaleNames(group_id_);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_EQ(removed, 1);
  EXPECT_FALSE(NameExists());
}

// Its maker died before it wrote who it is.
TEST_F(StaleNamesTest, WhatWasNeverFinishedIsRemovedWhenItIsOld) {
  const std::string name = Prepare()->name();
  const int fd = shm_open(name.c_str(), O_CREAT | O_EXCL | O_RDWR, 0600);
  ASSERT_GE(fd, 0);
  EXPECT_EQ(RemoveStaleNames(group_id_), 0);
  EXPECT_TRUE(NameExists());
  const timespec long_ago[2] = {{.tv_sec = 1'000'000, .tv_nsec = 0},
                                {.tv_sec = 1'000'000, .tv_nsec = 0}};
  ASSERT_EQ(futimens(fd, long_ago), 0);
  close(fd);
  EXPECT_EQ(RemoveStaleNames(group_id_), 1);
  EXPECT_FALSE(NameExists());
}

TEST_F(StaleNamesTest, OtherNamesAreLeftAlone) {
  const std::string name = "/not-nibble." + group_id_;
  const int fd = shm_open(name.c_str(), O_CREAT | O_EXCL | O_RDWR, 0600);
  ASSERT_GE(fd, 0);
  const timespec long_ago[2] = {{.tv_sec = 1'000'000, .tv_nsec = 0},
                                {.tv_sec = 1'000'000, .tv_nsec = 0}};
  ASSERT_EQ(futimens(fd, long_ago), 0);
  close(fd);
  EXPECT_EQ(RemoveStaleNames(group_id_), 0);
  EXPECT_EQ(shm_unlink(name.c_str()), 0);
}

}  // namespace
}  // namespace nibble::comm
