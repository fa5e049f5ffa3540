// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/shm/segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "comm/shm/collectives.h"
#include "tests/comm/shm/rank_threads.h"

namespace nibble::comm {
namespace {

using ::testing::HasSubstr;

Deadline Soon() { return Deadline::After(std::chrono::milliseconds(50)); }

// Enough for ranks that start together, should one stand still for a while.
constexpr std::chrono::seconds kMeetingTime(10);

std::string GroupId(const char* test) { return std::string(test) + std::to_string(getpid()); }

bool NameExists(const std::string& name) {
  const int fd = shm_open(name.c_str(), O_RDONLY, 0);
  if (fd >= 0) close(fd);
  return fd >= 0;
}

std::unique_ptr<ShmSegment> Prepared(const SegmentPlace& place) {
  auto segment = ShmSegment::Prepare(place);
  EXPECT_TRUE(segment.ok()) << segment.status();
  return segment.ok() ? *std::move(segment) : nullptr;
}

// A name with whatever a test puts there.
class FakeSegment {
 public:
  FakeSegment(std::string name, size_t bytes) : name_(std::move(name)) {
    const int fd = shm_open(name_.c_str(), O_CREAT | O_EXCL | O_RDWR, 0600);
    EXPECT_GE(fd, 0) << name_;
    EXPECT_EQ(ftruncate(fd, static_cast<off_t>(bytes)), 0);
    if (bytes > 0) {
      auto map = shm::Map::Make(fd, shm::Layout::For(2));
      EXPECT_TRUE(map.ok());
      map_ = *map;
    }
    close(fd);
  }
  ~FakeSegment() { shm_unlink(name_.c_str()); }
  FakeSegment(const FakeSegment&) = delete;
  FakeSegment& operator=(const FakeSegment&) = delete;
  shm::Map& map() { return *map_; }

 private:
  const std::string name_;
  std::shared_ptr<shm::Map> map_;
};

TEST(ShmSegmentPrepare, NamesValueAndLimit) {
  const auto message = [](const SegmentPlace& place) {
    const auto segment = ShmSegment::Prepare(place);
    EXPECT_EQ(segment.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(segment.status().message());
  };
  EXPECT_THAT(message({.num_ranks = 65, .group_id = "a"}), HasSubstr("65 ranks"));
  EXPECT_THAT(message({.num_ranks = 0, .group_id = "a"}), HasSubstr("0 ranks"));
  EXPECT_THAT(message({.rank = 2, .num_ranks = 2, .group_id = "a"}), HasSubstr("rank 2"));
  EXPECT_THAT(message({.rank = -1, .num_ranks = 2, .group_id = "a"}), HasSubstr("rank -1"));
  EXPECT_THAT(message({.node = -3, .group_id = "a"}), HasSubstr("-3"));
  EXPECT_THAT(message({.group_id = ""}), HasSubstr("''"));
  EXPECT_THAT(message({.group_id = "../x"}), HasSubstr("'../x'"));
  EXPECT_THAT(message({.group_id = std::string(65, 'a')}), HasSubstr("64"));
  EXPECT_EQ(ShmSegment::MakeForThreads(0).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ShmSegment::MakeForThreads(65).status().code(), absl::StatusCode::kInvalidArgument);
}

// In any order of arrival; the name is gone when they meet.
TEST(ShmSegmentConnect, RanksMeetByName) {
  const std::string group_id = GroupId("meet");
  std::vector<std::unique_ptr<ShmSegment>> segments;
  for (int rank = 0; rank < 3; ++rank) {
    segments.push_back(
        Prepared({.rank = rank, .num_ranks = 3, .node = 4, .group_id = group_id, .generation = 9}));
  }
  EXPECT_EQ(segments[0]->name(), "/nibble." + group_id + ".9.4");
  RunRanks(segments, [](ShmSegment* segment) {
    if (segment->rank() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const absl::Status status = segment->Connect(TestDeadline());
    ASSERT_TRUE(status.ok()) << status;
    ShmCollectives collectives(segment, Isa::kRef);
    float value = 1.0F;
    EXPECT_TRUE(
        collectives.AllReduce(&value, 1, Algorithm::kOneShot, nullptr, TestDeadline()).ok());
    EXPECT_EQ(value, 3.0F);
  });
  EXPECT_FALSE(NameExists(segments[0]->name()));
}

TEST(ShmSegmentConnect, ARankThatDoesNotComeIsNamed) {
  const std::string group_id = GroupId("absent");
  const auto maker = Prepared({.num_ranks = 2, .first_rank = 4, .group_id = group_id});
  const absl::Status status = maker->Connect(Soon());
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 5"));
  EXPECT_FALSE(NameExists(maker->name()));
}

TEST(ShmSegmentConnect, AMakerThatDoesNotComeIsNamed) {
  const auto other =
      Prepared({.rank = 1, .num_ranks = 2, .first_rank = 4, .group_id = GroupId("nomaker")});
  const absl::Status status = other->Connect(Soon());
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 4"));
}

TEST(ShmSegmentConnect, ANameThatExistsIsNotTaken) {
  const SegmentPlace place{.num_ranks = 2, .group_id = GroupId("exists")};
  FakeSegment leftover(Prepared(place)->name(), 0);
  const absl::Status status = Prepared(place)->Connect(Soon());
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists) << status;
  EXPECT_TRUE(NameExists(Prepared(place)->name())) << "somebody else's";
}

TEST(ShmSegmentConnect, ASecondRankOfTheSameNumberIsRefused) {
  const std::string group_id = GroupId("twice");
  std::vector<std::unique_ptr<ShmSegment>> segments;
  for (const int rank : {0, 1, 1}) {
    segments.push_back(Prepared({.rank = rank, .num_ranks = 2, .group_id = group_id}));
  }
  std::vector<absl::Status> statuses(3);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < segments.size(); ++i) {
    threads.emplace_back([&, i] {
      statuses[i] = segments[i]->Connect(i == 0 ? TestDeadline() : Deadline::After(kMeetingTime));
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(statuses[0].ok()) << statuses[0];
  EXPECT_NE(statuses[1].ok(), statuses[2].ok()) << statuses[1] << ", " << statuses[2];
  const absl::Status& refused = statuses[1].ok() ? statuses[2] : statuses[1];
  // Or it came when the name was gone.
  EXPECT_THAT(refused.code(), ::testing::AnyOf(absl::StatusCode::kAlreadyExists,
                                               absl::StatusCode::kDeadlineExceeded))
      << refused;
}

TEST(ShmSegmentConnect, RefusesWhatIsNoSegmentOfThisGeneration) {
  const SegmentPlace place{
      .rank = 1, .num_ranks = 2, .group_id = GroupId("garbage"), .generation = 7};
  const std::string name = Prepared(place)->name();
  const auto refusal = [&] {
    const absl::Status status = Prepared(place)->Connect(Soon());
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    return std::string(status.message());
  };
  const shm::Layout layout = shm::Layout::For(2);
  {
    FakeSegment small(name, layout.total_bytes - 1);
    EXPECT_THAT(refusal(), HasSubstr(std::to_string(layout.total_bytes - 1)));
  }
  FakeSegment fake(name, layout.total_bytes);
  fake.map().Initialize(7, 0);
  shm::Header& header = fake.map().header();
  {  // Its maker has not finished: worth waiting for.
    const absl::Status status = Prepared(place)->Connect(Soon());
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  }
  header.magic.store(0x1234);
  EXPECT_THAT(refusal(), HasSubstr("magic"));
  header.magic.store(shm::kMagic);
  header.generation = 6;
  EXPECT_THAT(refusal(), HasSubstr("generation 6, expected 7"));
  header.generation = 7;
  header.num_ranks = 3;
  EXPECT_THAT(refusal(), HasSubstr("ranks 3, expected 2"));
  header.num_ranks = 2;
  header.layout_version = 99;
  EXPECT_THAT(refusal(), HasSubstr("layout version 99"));
  header.layout_version = shm::kLayoutVersion;
  header.bytes = 5;
  EXPECT_THAT(refusal(), HasSubstr("bytes 5"));
  header.bytes = layout.total_bytes;
  fake.map().doorbell(1).pid.store(123);
  const absl::Status status = Prepared(place)->Connect(Soon());
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("pid 123"));
}

TEST(ShmSegmentConnect, AbortEndsTheWaitForTheMaker) {
  const auto segment = Prepared({.rank = 1, .num_ranks = 2, .group_id = GroupId("abort")});
  std::thread aborting([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    segment->Abort("given up");
  });
  const absl::Status status = segment->Connect(TestDeadline());
  EXPECT_EQ(status, absl::AbortedError("given up"));
  aborting.join();
  EXPECT_EQ(segment->Connect(TestDeadline()), absl::AbortedError("given up"));
}

TEST(ShmSegmentConnect, AbortEndsTheWaitForTheOthers) {
  const auto segment = Prepared({.num_ranks = 2, .group_id = GroupId("abort2")});
  std::thread aborting([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    segment->Abort("given up");
  });
  EXPECT_EQ(segment->Connect(TestDeadline()), absl::AbortedError("given up"));
  aborting.join();
  EXPECT_FALSE(NameExists(segment->name()));
}

TEST(ShmSegmentNames, OnlyThoseOfTheGenerationGo) {
  const std::string group_id = GroupId("names");
  const auto name = [&](uint64_t generation, int node) {
    return Prepared({.node = node, .group_id = group_id, .generation = generation})->name();
  };
  FakeSegment one(name(1, 0), 0);
  FakeSegment other_node(name(1, 12), 0);
  FakeSegment other_generation(name(11, 0), 0);
  RemoveSegmentNames(group_id, 1);
  EXPECT_FALSE(NameExists(name(1, 0)));
  EXPECT_FALSE(NameExists(name(1, 12)));
  EXPECT_TRUE(NameExists(name(11, 0)));
  RemoveSegmentNames("../../tmp", 1);  // no group id: nothing
}

TEST(ShmSegmentAbort, EndsAllRanksWithItsReason) {
  const auto segments = ThreadSegments(3);
  RunRanks(segments, [&](ShmSegment* segment) {
    ShmCollectives collectives(segment, Isa::kRef);
    ASSERT_TRUE(collectives.Barrier(TestDeadline()).ok());
    if (segment->rank() == 2) {
      // Not from the thread of the one that waits.
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      segments[0]->Abort("the model is being unloaded");
      return;
    }
    for (int i = 0; i < 2; ++i) {
      const absl::Status status = collectives.Barrier(TestDeadline());
      EXPECT_EQ(status,
                absl::AbortedError(segment->rank() == 0 ? "the model is being unloaded"
                                                        : "rank 0: the model is being unloaded"));
    }
  });
}

TEST(ShmSegmentAbort, KeepsTheStartOfALongReason) {
  const auto segments = ThreadSegments(2);
  segments[0]->Abort(std::string(5000, 'x'));
  const absl::Status status = segments[1]->Health();
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 0: xxx"));
  EXPECT_LT(status.message().size(), 1000U);
}

TEST(ShmSegmentWait, ALateRankIsNamed) {
  const auto segments = ThreadSegments(3);
  ShmCollectives first(segments[0].get(), Isa::kRef);
  ShmCollectives second(segments[1].get(), Isa::kRef);
  const absl::Status status = second.Broadcast(nullptr, 0, 2, Soon());
  EXPECT_TRUE(status.ok()) << "no bytes, nobody to wait for: " << status;
  const absl::Status late = first.Barrier(Soon());
  EXPECT_EQ(late.code(), absl::StatusCode::kDeadlineExceeded) << late;
  EXPECT_THAT(std::string(late.message()), HasSubstr("rank 1"));
  EXPECT_EQ(second.Barrier(Soon()), late) << "the others learn why";
}

TEST(ShmSegmentWait, ARankThatLeftIsNamed) {
  auto segments = ThreadSegments(2);
  segments[1].reset();
  ShmCollectives collectives(segments[0].get(), Isa::kRef);
  const absl::Status status = collectives.Barrier(TestDeadline());
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1"));
}

// What it did before is still good.
TEST(ShmSegmentWait, ARankMayLeaveBeforeTheOthersHaveReadItsPart) {
  auto segments = ThreadSegments(2);
  float data = 5.0F;
  ASSERT_TRUE(ShmCollectives(segments[1].get(), Isa::kRef)
                  .Broadcast(&data, sizeof(data), 1, TestDeadline())
                  .ok());
  segments[1].reset();
  float got = 0.0F;
  ASSERT_TRUE(ShmCollectives(segments[0].get(), Isa::kRef)
                  .Broadcast(&got, sizeof(got), 1, TestDeadline())
                  .ok());
  EXPECT_EQ(got, 5.0F);
}

}  // namespace
}  // namespace nibble::comm
