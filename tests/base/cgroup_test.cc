// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/cgroup.h"

#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

#include "gtest/gtest.h"

namespace nibble {
namespace {

constexpr int64_t kNoMemoryLimit = std::numeric_limits<int64_t>::max();
constexpr int kNoCpuLimit = std::numeric_limits<int>::max();

// A hierarchy of control groups in a temporary directory.
class CgroupTest : public ::testing::Test {
 protected:
  CgroupTest()
      : root_(::testing::TempDir() + "nibble_cgroup_" +
              ::testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::filesystem::remove_all(root_);
    std::filesystem::create_directories(root_);
  }
  void Write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root_ + "/" + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  CgroupLimits Read() const { return ReadCgroupLimits(root_, root_ + "/self"); }

  std::string root_;
};

TEST_F(CgroupTest, NoFilesNoLimits) {
  EXPECT_EQ(Read().memory_available_bytes, kNoMemoryLimit);
  EXPECT_EQ(Read().num_cpus, kNoCpuLimit);
}

// Page cache is charged to the group, but given back before anybody is killed.
TEST_F(CgroupTest, V2CountsPageCacheAsAvailable) {
  Write("self", "0::/\n");
  Write("memory.max", "16000\n");
  Write("memory.current", "15900\n");
  Write("memory.stat", "anon 1900\nfile 14500\nshmem 500\ninactive_file 10000\nactive_file 4000\n");
  EXPECT_EQ(Read().memory_available_bytes, 16000 - (15900 - 14000));
}

TEST_F(CgroupTest, V2MaxIsNoLimit) {
  Write("memory.max", "max\n");
  Write("memory.current", "15900\n");
  Write("cpu.max", "max 100000\n");
  EXPECT_EQ(Read().memory_available_bytes, kNoMemoryLimit);
  EXPECT_EQ(Read().num_cpus, kNoCpuLimit);
}

TEST_F(CgroupTest, V2QuotaIsRoundedUp) {
  Write("cpu.max", "400000 100000\n");
  EXPECT_EQ(Read().num_cpus, 4);
  Write("cpu.max", "50000 100000\n");
  EXPECT_EQ(Read().num_cpus, 1);
  Write("cpu.max", "250000 100000\n");
  EXPECT_EQ(Read().num_cpus, 3);
}

TEST_F(CgroupTest, TheTightestGroupOfTheLineCounts) {
  Write("self", "0::/system.slice/nibble.service\n");
  Write("system.slice/memory.max", "1000");
  Write("system.slice/memory.current", "900");
  Write("system.slice/nibble.service/memory.max", "800");
  Write("system.slice/nibble.service/memory.current", "100");
  Write("system.slice/nibble.service/cpu.max", "300000 100000");
  Write("system.slice/cpu.max", "1600000 100000");
  Write("other.slice/memory.max", "10");
  Write("other.slice/memory.current", "10");
  EXPECT_EQ(Read().memory_available_bytes, 100);
  EXPECT_EQ(Read().num_cpus, 3);
}

// A container's files often name the path as the host sees it, which is not mounted inside.
TEST_F(CgroupTest, AGroupThatIsNotMountedIsReadAtTheRoot) {
  Write("self", "0::/kubepods/pod1/container2\n");
  Write("memory.max", "700");
  Write("memory.current", "200");
  EXPECT_EQ(Read().memory_available_bytes, 500);
  Write("self", "0::/../../elsewhere\n");
  EXPECT_EQ(Read().memory_available_bytes, 500);
}

TEST_F(CgroupTest, V1ReadsEachControllersHierarchy) {
  Write("self", "9:name=systemd:/x\n4:memory:/docker/a\n2:cpu,cpuacct:/docker/b\n");
  Write("memory/memory.limit_in_bytes", "9223372036854771712\n");
  Write("memory/memory.usage_in_bytes", "5000\n");
  Write("memory/docker/a/memory.limit_in_bytes", "3000\n");
  Write("memory/docker/a/memory.usage_in_bytes", "2900\n");
  // Without "total_" the group's own pages alone, not those of the groups below.
  Write("memory/docker/a/memory.stat",
        "active_file 1\ninactive_file 2\ntotal_active_file 300\ntotal_inactive_file 600\n");
  Write("cpu/docker/b/cpu.cfs_quota_us", "150000\n");
  Write("cpu/docker/b/cpu.cfs_period_us", "100000\n");
  Write("cpu/cpu.cfs_quota_us", "-1\n");
  Write("cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(Read().memory_available_bytes, 3000 - (2900 - 900));
  EXPECT_EQ(Read().num_cpus, 2);
}

TEST_F(CgroupTest, NonsenseLimitsNothing) {
  Write("self", "garbage\n0:\n::\n0::relative\n");
  Write("memory.max", "-5\n");
  Write("memory.current", "12 apples\n");
  Write("cpu.max", "0 0\n");
  EXPECT_EQ(Read().memory_available_bytes, kNoMemoryLimit);
  EXPECT_EQ(Read().num_cpus, kNoCpuLimit);
  Write("memory.max", "99999999999999999999999\n");
  Write("memory.current", "\n");
  Write("cpu.max", "9223372036854775807 1\n");
  EXPECT_EQ(Read().memory_available_bytes, kNoMemoryLimit);
  EXPECT_EQ(Read().num_cpus, kNoCpuLimit);
}

// More cache than use, more use than limit: counters are read one after the other.
TEST_F(CgroupTest, CountersThatDoNotAddUpStayInRange) {
  Write("memory.max", "1000");
  Write("memory.current", "100");
  Write("memory.stat", "inactive_file 700\nactive_file 9223372036854775807\n");
  EXPECT_EQ(Read().memory_available_bytes, 1000);
  Write("memory.current", "1500");
  Write("memory.stat", "inactive_file -1\n");
  EXPECT_EQ(Read().memory_available_bytes, 0);
}

}  // namespace
}  // namespace nibble
