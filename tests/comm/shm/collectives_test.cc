// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/shm/collectives.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "base/cpu_features.h"
#include "tests/comm/shm/rank_threads.h"
#include "tests/testing/random.h"

namespace nibble::comm {
namespace {

constexpr int64_t kSlotValues = static_cast<int64_t>(shm::kSlotBytes / sizeof(float));
constexpr Algorithm kBoth[] = {Algorithm::kOneShot, Algorithm::kTwoShot};

// What rank r brings: small integers, whose sums are exact, and different everywhere.
float Brought(int rank, int64_t i) { return static_cast<float>((rank + 1) * (i % 1009) - rank); }

std::vector<float> BroughtBy(int rank, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) values[static_cast<size_t>(i)] = Brought(rank, i);
  return values;
}

std::vector<float> SumOfBrought(int num_ranks, int64_t count) {
  std::vector<float> sums(static_cast<size_t>(count));
  const auto weights = static_cast<float>(num_ranks * (num_ranks + 1) / 2);
  const auto offsets = static_cast<float>(num_ranks * (num_ranks - 1) / 2);
  for (int64_t i = 0; i < count; ++i) {
    sums[static_cast<size_t>(i)] = weights * static_cast<float>(i % 1009) - offsets;
  }
  return sums;
}

class ShmCollectivesTest : public ::testing::TestWithParam<int> {};

TEST_P(ShmCollectivesTest, AllReduceSumsExactly) {
  const int num_ranks = GetParam();
  const auto segments = ThreadSegments(num_ranks);
  RunRanks(segments, [&](ShmSegment* segment) {
    ShmCollectives collectives(segment, *ChooseIsa());
    for (const int64_t count :
         {int64_t{0}, int64_t{1}, int64_t{2}, int64_t{15}, int64_t{17}, int64_t{1001},
          kSlotValues - 1, kSlotValues, kSlotValues + 1, 3 * kSlotValues + 5}) {
      const std::vector<float> expected = SumOfBrought(num_ranks, count);
      for (const Algorithm algorithm : kBoth) {
        std::vector<float> data = BroughtBy(segment->rank(), count);
        const absl::Status status =
            collectives.AllReduce(data.data(), count, algorithm, nullptr, TestDeadline());
        ASSERT_TRUE(status.ok()) << status;
        EXPECT_TRUE(data == expected) << count << " values, rank " << segment->rank();
      }
    }
  });
}

// Sums that round give the same bits on all ranks by both algorithms: those of the loop in rank
// order.
TEST_P(ShmCollectivesTest, AllReduceHasTheBitsOfRankOrder) {
  const int num_ranks = GetParam();
  constexpr int64_t kCount = kSlotValues + 77;
  std::vector<std::vector<float>> brought;
  for (int rank = 0; rank < num_ranks; ++rank) {
    testing::Random random(static_cast<uint32_t>(rank) + 5);
    brought.push_back(random.Normals(kCount, rank == 1 ? 1e5F : 1.0F));
  }
  std::vector<float> expected = brought[0];
  for (int rank = 1; rank < num_ranks; ++rank) {
    for (size_t i = 0; i < expected.size(); ++i) {
      expected[i] += brought[static_cast<size_t>(rank)][i];
    }
  }
  const auto segments = ThreadSegments(num_ranks);
  RunRanks(segments, [&](ShmSegment* segment) {
    ShmCollectives collectives(segment, *ChooseIsa());
    ThreadPool pool(2);
    for (const Algorithm algorithm : kBoth) {
      for (ThreadPool* const threads : {static_cast<ThreadPool*>(nullptr), &pool}) {
        std::vector<float> data = brought[static_cast<size_t>(segment->rank())];
        const absl::Status status =
            collectives.AllReduce(data.data(), kCount, algorithm, threads, TestDeadline());
        ASSERT_TRUE(status.ok()) << status;
        EXPECT_EQ(std::memcmp(data.data(), expected.data(), kCount * sizeof(float)), 0);
      }
    }
  });
}

TEST_P(ShmCollectivesTest, MovesBytes) {
  const int num_ranks = GetParam();
  const auto segments = ThreadSegments(num_ranks);
  const auto ranks = static_cast<size_t>(num_ranks);
  RunRanks(segments, [&](ShmSegment* segment) {
    ShmCollectives collectives(segment, *ChooseIsa());
    const int rank = segment->rank();
    for (const size_t bytes : {size_t{0}, size_t{1}, size_t{333}, shm::kSlotBytes - 1,
                               shm::kSlotBytes, shm::kSlotBytes + 1, 5 * shm::kSlotBytes + 3}) {
      if (bytes > 2 * shm::kSlotBytes && num_ranks > 3) continue;  // sanitizers take long over it
      // All-gather.
      const std::string mine(bytes, static_cast<char>('a' + rank));
      std::string all(bytes * ranks, '?');
      ASSERT_TRUE(collectives.AllGather(mine.data(), bytes, all.data(), TestDeadline()).ok());
      for (size_t i = 0; i < ranks; ++i) {
        ASSERT_EQ(all.substr(i * bytes, bytes), std::string(bytes, static_cast<char>('a' + i)));
      }
      // Broadcast and gather, from and to the first and the last rank.
      for (int root = 0; root < num_ranks; root += std::max(1, num_ranks - 1)) {
        std::string data(bytes, rank == root ? static_cast<char>('A' + root) : '?');
        ASSERT_TRUE(collectives.Broadcast(data.data(), bytes, root, TestDeadline()).ok());
        ASSERT_EQ(data, std::string(bytes, static_cast<char>('A' + root)));

        std::vector<size_t> bytes_of_rank;
        std::string expected;
        for (int i = 0; i < num_ranks; ++i) {
          bytes_of_rank.push_back(i == 1 ? 0 : bytes + static_cast<size_t>(7 * i));
          expected += std::string(bytes_of_rank.back(), static_cast<char>('a' + i));
        }
        const std::string part(bytes_of_rank[static_cast<size_t>(rank)],
                               static_cast<char>('a' + rank));
        std::string gathered(rank == root ? expected.size() : 0, '?');
        ASSERT_TRUE(collectives
                        .Gather(part.data(), bytes_of_rank.data(),
                                rank == root ? gathered.data() : nullptr, root, TestDeadline())
                        .ok());
        if (rank == root) {
          ASSERT_EQ(gathered, expected);
        }
      }
      ASSERT_TRUE(collectives.Barrier(TestDeadline()).ok());
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, ShmCollectivesTest, ::testing::Range(1, 9));

TEST(ShmCollectivesLarge, ThirtyTwoMegabytes) {
  constexpr int kRanks = 3;
  constexpr int64_t kCount = 8 << 20;
  const std::vector<float> expected = SumOfBrought(kRanks, kCount);
  const auto segments = ThreadSegments(kRanks);
  RunRanks(segments, [&](ShmSegment* segment) {
    ShmCollectives collectives(segment, *ChooseIsa());
    std::vector<float> data = BroughtBy(segment->rank(), kCount);
    const absl::Status status =
        collectives.AllReduce(data.data(), kCount, Algorithm::kTwoShot, nullptr, TestDeadline());
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_TRUE(data == expected);
  });
}

// The in-place all-gather: a rank's part already lies where it goes.
TEST(ShmCollectivesAllGather, InPlace) {
  const auto segments = ThreadSegments(3);
  RunRanks(segments, [&](ShmSegment* segment) {
    ShmCollectives collectives(segment, *ChooseIsa());
    std::string all = "......";
    const auto at = static_cast<size_t>(2 * segment->rank());
    all[at] = all[at + 1] = static_cast<char>('0' + segment->rank());
    ASSERT_TRUE(collectives.AllGather(all.data() + at, 2, all.data(), TestDeadline()).ok());
    EXPECT_EQ(all, "001122");
  });
}

TEST(ShmCollectivesAlgorithm, IsTotal) {
  for (int num_ranks = 1; num_ranks <= shm::kMaxRanks; ++num_ranks) {
    EXPECT_EQ(ShmCollectives::Faster(1, num_ranks), Algorithm::kOneShot);
    EXPECT_EQ(ShmCollectives::Faster(8 << 20, num_ranks),
              num_ranks <= 2 ? Algorithm::kOneShot : Algorithm::kTwoShot);
  }
}

// One of many calls of all kinds and sizes, of which every rank knows what must come of it.
class RandomCalls {
 public:
  RandomCalls(ShmSegment* segment, uint32_t seed)
      : segment_(segment),
        collectives_(segment, *ChooseIsa()),
        calls_(seed),
        delays_(seed + 100 + static_cast<uint32_t>(segment->rank())) {}

  // False after a failure.
  bool Next() {
    Delay();
    const int root = static_cast<int>(calls_.Int(0, segment_->size() - 1));
    const int64_t count =
        calls_.Int(0, 99) == 0 ? kSlotValues + calls_.Int(-2, 2 * kSlotValues) : calls_.Int(0, 600);
    const float salt = static_cast<float>(calls_.Int(0, 1000));
    switch (calls_.Int(0, 5)) {
      case 0:
        return Sums(count, salt, Algorithm::kOneShot);
      case 1:
        return Sums(count, salt, Algorithm::kTwoShot);
      case 2:
        return Gathers(count, salt);
      case 3:
        return GathersTo(root, count, salt);
      case 4:
        return Broadcasts(root, count, salt);
      default:
        return collectives_.Barrier(TestDeadline()).ok();
    }
  }

 private:
  void Delay() {
    const int64_t kind = delays_.Int(0, 199);
    if (kind == 0) std::this_thread::sleep_for(std::chrono::microseconds(delays_.Int(1, 500)));
    if (kind < 10) std::this_thread::yield();
  }
  std::vector<float> Filled(int rank, int64_t count, float salt) const {
    std::vector<float> values(static_cast<size_t>(count));
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = salt + static_cast<float>(rank * 3) + static_cast<float>(i % 17);
    }
    return values;
  }

  bool Sums(int64_t count, float salt, Algorithm algorithm) {
    std::vector<float> data = Filled(segment_->rank(), count, salt);
    if (!collectives_.AllReduce(data.data(), count, algorithm, nullptr, TestDeadline()).ok()) {
      return false;
    }
    const auto ranks = static_cast<float>(segment_->size());
    for (size_t i = 0; i < data.size(); ++i) {
      const float sum = ranks * (salt + static_cast<float>(i % 17)) + 3 * ranks * (ranks - 1) / 2;
      if (data[i] != sum) return false;
    }
    return true;
  }
  bool Gathers(int64_t count, float salt) {
    const std::vector<float> mine = Filled(segment_->rank(), count, salt);
    const size_t bytes = mine.size() * sizeof(float);
    std::vector<float> all(mine.size() * static_cast<size_t>(segment_->size()));
    if (!collectives_.AllGather(mine.data(), bytes, all.data(), TestDeadline()).ok()) return false;
    return all == Parts(count, salt);
  }
  bool GathersTo(int root, int64_t count, float salt) {
    const std::vector<float> mine = Filled(segment_->rank(), count, salt);
    const std::vector<size_t> bytes(static_cast<size_t>(segment_->size()),
                                    mine.size() * sizeof(float));
    std::vector<float> all(mine.size() * bytes.size());
    if (!collectives_.Gather(mine.data(), bytes.data(), all.data(), root, TestDeadline()).ok()) {
      return false;
    }
    return segment_->rank() != root || all == Parts(count, salt);
  }
  bool Broadcasts(int root, int64_t count, float salt) {
    std::vector<float> data = Filled(segment_->rank(), count, salt);
    const size_t bytes = data.size() * sizeof(float);
    if (!collectives_.Broadcast(data.data(), bytes, root, TestDeadline()).ok()) return false;
    return data == Filled(root, count, salt);
  }
  std::vector<float> Parts(int64_t count, float salt) const {
    std::vector<float> all;
    for (int rank = 0; rank < segment_->size(); ++rank) {
      const std::vector<float> part = Filled(rank, count, salt);
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }

  ShmSegment* const segment_;
  ShmCollectives collectives_;
  testing::Random calls_;   // the same on all ranks
  testing::Random delays_;  // each its own
};

// Counters begin where 32 and 64 bits end.
TEST(ShmCollectivesRandom, TenThousandCallsBackToBack) {
  for (const uint64_t first_round : {uint64_t{UINT32_MAX} - 1000, UINT64_MAX - 1000}) {
    for (const int num_ranks : {2, 3}) {
      const auto segments = ThreadSegments(num_ranks, first_round);
      RunRanks(segments, [](ShmSegment* segment) {
        RandomCalls calls(segment, 3);
        for (int i = 0; i < 2500; ++i) {
          if (calls.Next()) continue;
          ADD_FAILURE() << "call " << i << " of rank " << segment->rank() << ": "
                        << segment->Health();
          segment->Abort("test failed");
          return;
        }
      });
    }
  }
}

TEST(ShmCollectivesMismatch, NamesRankAndBothCalls) {
  const auto segments = ThreadSegments(2);
  RunRanks(segments, [&](ShmSegment* segment) {
    ShmCollectives collectives(segment, *ChooseIsa());
    std::vector<float> data(100);
    const absl::Status status =
        segment->rank() == 0
            ? collectives.Barrier(TestDeadline())
            : collectives.AllReduce(data.data(), 100, Algorithm::kOneShot, nullptr, TestDeadline());
    const absl::Status next = collectives.Barrier(TestDeadline());
    EXPECT_EQ(next.code(), absl::StatusCode::kInternal) << next;
    EXPECT_NE(next.message().find("one-shot all-reduce of 100"), std::string::npos) << next;
    EXPECT_NE(next.message().find("barrier"), std::string::npos) << next;
    // The one that looked first may have got through the call itself.
    EXPECT_TRUE(status.ok() || status == next) << status;
  });
}

}  // namespace
}  // namespace nibble::comm
