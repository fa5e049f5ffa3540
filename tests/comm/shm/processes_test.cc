// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Ranks that are processes: what they share, and what the others make of one that dies or stops.

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "comm/shm/collectives.h"
#include "comm/shm/segment.h"
#include "comm/shm/segment_layout.h"
#include "comm/shm/shm_transport.h"
#include "tests/comm/shm/child_process.h"
#include "tests/comm/shm/rank_threads.h"

namespace nibble::comm {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class ShmProcesses : public ::testing::Test {
 protected:
  static constexpr int kRanks = 3;

  void TearDown() override { RemoveSegmentNames(group_id_, 0); }

  // body(segment) in a process for each rank, after Connect.
  void Start(const std::function<absl::Status(ShmSegment*)>& body) {
    for (int rank = 0; rank < kRanks; ++rank) {
      children_.push_back(std::make_unique<ChildProcess>([&, rank] {
        const std::unique_ptr<ShmSegment> segment = Prepare(rank);
        absl::Status status = segment->Connect(TestDeadline());
        if (status.ok()) status = body(segment.get());
        return status.ToString();
      }));
    }
  }
  std::unique_ptr<ShmSegment> Prepare(int rank) const {
    return *ShmSegment::Prepare({.rank = rank, .num_ranks = kRanks, .group_id = group_id_});
  }
  std::string Result(int rank) const { return children_[static_cast<size_t>(rank)]->Result(); }
  std::string PidOf(int rank) const {
    return std::to_string(children_[static_cast<size_t>(rank)]->pid());
  }
  bool NameExists() const {
    const int fd = shm_open(Prepare(0)->name().c_str(), O_RDONLY, 0);
    if (fd >= 0) close(fd);
    return fd >= 0;
  }
  bool IsSeated(int rank) const {
    const shm::Layout layout = shm::Layout::For(kRanks);
    const int fd = shm_open(Prepare(0)->name().c_str(), O_RDWR, 0);
    struct stat info {};
    // Beyond its end, memory must not be touched.
    const bool has_memory = fd >= 0 && fstat(fd, &info) == 0 &&
                            static_cast<uint64_t>(info.st_size) == layout.total_bytes;
    const auto map = has_memory ? shm::Map::Make(fd, layout) : absl::UnknownError("");
    if (fd >= 0) close(fd);
    return map.ok() && (*map)->doorbell(rank).seat.load() == shm::kSeated;
  }

  const std::string group_id_ =
      std::string(::testing::UnitTest::GetInstance()->current_test_info()->name()) + "-" +
      std::to_string(getpid());
  std::vector<std::unique_ptr<ChildProcess>> children_;
};

TEST_F(ShmProcesses, Collectives) {
  Start([](ShmSegment* segment) -> absl::Status {
    ShmCollectives collectives(segment, *ChooseIsa());
    for (int i = 0; i < 300; ++i) {
      const int64_t count = i % 50 == 0 ? 200'000 : 3 * i;
      std::vector<float> data(static_cast<size_t>(count), static_cast<float>(segment->rank() + i));
      NIBBLE_RETURN_IF_ERROR(collectives.AllReduce(
          data.data(), count, ShmCollectives::Faster(count, kRanks), nullptr, TestDeadline()));
      for (const float sum : data) {
        if (sum != static_cast<float>(3 * i + 3)) return Internal("call {} gave {}", i, sum);
      }
      NIBBLE_RETURN_IF_ERROR(collectives.Barrier(TestDeadline()));
    }
    return absl::OkStatus();
  });
  for (int rank = 0; rank < kRanks; ++rank) EXPECT_EQ(Result(rank), "OK");
  EXPECT_FALSE(NameExists());
}

TEST_F(ShmProcesses, Transport) {
  Start([](ShmSegment* segment) -> absl::Status {
    ShmTransport transport(segment);
    std::string sent(300'000, static_cast<char>('a' + segment->rank()));
    std::string got(sent.size(), '?');
    const int next = (segment->rank() + 1) % kRanks;
    const int previous = (segment->rank() + kRanks - 1) % kRanks;
    for (int i = 0; i < 20; ++i) {
      NIBBLE_ASSIGN_OR_RETURN(const Ticket out, transport.Send(next, 1, sent.data(), sent.size()));
      NIBBLE_ASSIGN_OR_RETURN(const Ticket in,
                              transport.Receive(previous, 1, got.data(), got.size()));
      NIBBLE_RETURN_IF_ERROR(transport.Wait(in, TestDeadline()));
      NIBBLE_RETURN_IF_ERROR(transport.Wait(out, TestDeadline()));
      sent.swap(got);
    }
    // Twenty steps around three: it is the string of the rank twenty before.
    const char origin = static_cast<char>('a' + (segment->rank() + 3 * 20 - 20) % kRanks);
    if (sent != std::string(sent.size(), origin)) return Internal("not what was sent");
    return absl::OkStatus();
  });
  for (int rank = 0; rank < kRanks; ++rank) EXPECT_EQ(Result(rank), "OK");
}

// It stays a zombie until the test ends: that is gone too.
TEST_F(ShmProcesses, AKilledRankIsNamed) {
  Start([](ShmSegment* segment) -> absl::Status {
    ShmCollectives collectives(segment, *ChooseIsa());
    for (int i = 0;; ++i) {
      if (i == 10 && segment->rank() == 1) kill(getpid(), SIGKILL);
      NIBBLE_RETURN_IF_ERROR(collectives.Barrier(TestDeadline()));
    }
  });
  for (const int survivor : {0, 2}) {
    const std::string result = Result(survivor);
    EXPECT_THAT(result, StartsWith("UNAVAILABLE"));
    EXPECT_THAT(result, HasSubstr("rank 1 (pid " + PidOf(1) + ")"));
  }
  EXPECT_FALSE(NameExists());
}

TEST_F(ShmProcesses, AKilledPeerOfAMessageIsNamed) {
  Start([](ShmSegment* segment) -> absl::Status {
    if (segment->rank() == 1) kill(getpid(), SIGKILL);
    ShmTransport transport(segment);
    char byte = 0;
    NIBBLE_ASSIGN_OR_RETURN(const Ticket in, transport.Receive(1, 5, &byte, 1));
    return transport.Wait(in, TestDeadline());
  });
  for (const int survivor : {0, 2}) {
    const std::string result = Result(survivor);
    EXPECT_THAT(result, StartsWith("UNAVAILABLE"));
    EXPECT_THAT(result, HasSubstr("rank 1 (pid " + PidOf(1) + ")"));
  }
}

// In time for a survivor that stands still for a while.
TEST_F(ShmProcesses, AStoppedRankIsNamed) {
  Start([](ShmSegment* segment) -> absl::Status {
    ShmCollectives collectives(segment, *ChooseIsa());
    NIBBLE_RETURN_IF_ERROR(collectives.Barrier(TestDeadline()));
    if (segment->rank() == 1) kill(getpid(), SIGSTOP);
    float value = 1.0F;
    return collectives.AllReduce(&value, 1, Algorithm::kOneShot, nullptr,
                                 Deadline::After(std::chrono::seconds(4)));
  });
  for (const int survivor : {0, 2}) {
    const std::string result = Result(survivor);
    EXPECT_THAT(result, StartsWith("DEADLINE_EXCEEDED"));
    EXPECT_THAT(result, HasSubstr("rank 1 (pid " + PidOf(1) + ")"));
  }
}

TEST_F(ShmProcesses, AMakerThatDiesBeforeAllAttachedLeavesANameThatCanBeRemoved) {
  const ChildProcess maker([&] { return Prepare(0)->Connect(TestDeadline()).ToString(); });
  // Rank 2 never comes. The maker dies when it and this process have taken their seats.
  std::thread killer([&] {
    while (!IsSeated(0) || !IsSeated(1)) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    kill(maker.pid(), SIGKILL);
  });
  const auto segment = Prepare(1);
  const absl::Status status = segment->Connect(TestDeadline());
  killer.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 0"));
  EXPECT_TRUE(NameExists());
  RemoveSegmentNames(group_id_, 0);
  EXPECT_FALSE(NameExists());
}

// In a mount namespace of its own, where shared memory is small.
TEST_F(ShmProcesses, TooLittleSharedMemoryIsRefused) {
  const ChildProcess child([&]() -> std::string {
    const bool own_mounts = unshare(CLONE_NEWNS) == 0 || unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0;
    if (!own_mounts || mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        mount("tmpfs", "/dev/shm", "tmpfs", 0, "size=1m") != 0) {
      return "skip";
    }
    const absl::Status status = Prepare(0)->Connect(TestDeadline());
    return status.ToString() + (NameExists() ? " and leaves its name" : "");
  });
  const std::string result = child.Result();
  if (result == "skip") GTEST_SKIP() << "no mount namespace to be had";
  EXPECT_THAT(result, StartsWith("RESOURCE_EXHAUSTED"));
  EXPECT_THAT(result, HasSubstr(std::to_string(shm::Layout::For(kRanks).total_bytes)));
  EXPECT_THAT(result, HasSubstr("1048576 free"));
  EXPECT_THAT(result, ::testing::Not(HasSubstr("leaves its name")));
}

}  // namespace
}  // namespace nibble::comm
