// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Groups of threads: on one host, on hosts of one rank each, and on hosts of several, where a
// network of plain memory connects what shared memory does not.

#include "comm/group_communicator.h"

#include <cstring>
#include <functional>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

#include "base/float16.h"
#include "comm/choose_policy.h"
#include "comm/group.h"
#include "comm/measure_policy.h"
#include "tests/testing/memory_transport.h"
#include "tests/testing/random.h"

namespace nibble::comm {
namespace {

using Rows = std::vector<float>;
using Group = std::vector<std::unique_ptr<GroupCommunicator>>;

void OnRanks(const Group& group, const std::function<void(GroupCommunicator*)>& body) {
  std::vector<std::thread> threads;
  for (const auto& communicator : group) threads.emplace_back(body, communicator.get());
  for (std::thread& thread : threads) thread.join();
}

Group MakeGroup(const std::vector<int>& ranks_of_host, const GroupSettings& settings,
                uint32_t disorder_seed = 0) {
  std::vector<int> node_of_rank;
  std::vector<std::unique_ptr<ShmSegment>> segments;
  for (size_t host = 0; host < ranks_of_host.size(); ++host) {
    const int count = ranks_of_host[host];
    node_of_rank.insert(node_of_rank.end(), static_cast<size_t>(count), static_cast<int>(host) * 3);
    if (count == 1) {
      segments.push_back(nullptr);
      continue;
    }
    auto of_host = ShmSegment::MakeForThreads(count);
    EXPECT_TRUE(of_host.ok()) << of_host.status();
    for (auto& segment : *of_host) segments.push_back(std::move(segment));
  }
  const int size = static_cast<int>(node_of_rank.size());
  auto transports = testing::MakeMemoryTransports(size, {.disorder_seed = disorder_seed});
  Group group;
  for (int rank = 0; rank < size; ++rank) {
    const auto at = static_cast<size_t>(rank);
    GroupLinks links = {.node_of_rank = node_of_rank, .host = std::move(segments[at])};
    if (ranks_of_host.size() > 1) links.network = std::move(transports[at]);
    group.push_back(std::make_unique<GroupCommunicator>(rank, std::move(links), settings,
                                                        HostCpuFeatures().Best()));
  }
  return group;
}

GroupSettings With(const CodecDesc& codec) {
  return {.policy = NetworkPolicy(codec, 2), .first_operation = 0xfffffffe};
}

bool SameBits(const Rows& a, const Rows& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class Topologies : public ::testing::TestWithParam<std::vector<int>> {
 protected:
  int size() const { return std::accumulate(GetParam().begin(), GetParam().end(), 0); }

  std::vector<Rows> AllReduce(const Group& group, std::vector<Rows> data, int64_t num_rows,
                              int64_t row_size, bool exact = false, bool is_bf16 = false) {
    OnRanks(group, [&](GroupCommunicator* rank) {
      const absl::Status status =
          rank->AllReduce({.data = data[static_cast<size_t>(rank->rank())].data(),
                           .num_rows = num_rows,
                           .row_size = row_size,
                           .exact = exact,
                           .is_bf16 = is_bf16},
                          nullptr);
      EXPECT_TRUE(status.ok()) << status;
    });
    return data;
  }

  std::vector<Rows> RandomRows(int64_t count, uint32_t seed) {
    testing::Random random(seed);
    std::vector<Rows> rows;
    for (int r = 0; r < size(); ++r) rows.push_back(random.Normals(count));
    return rows;
  }

  // Sums of float32 on each host, then codes between hosts, in one place.
  Rows Expected(const CodecDesc& codec, const std::vector<Rows>& data, int64_t row_size) {
    if (data.size() == 1) return data[0];  // nothing travels
    std::vector<Rows> hosts;
    size_t rank = 0;
    for (const int count : GetParam()) {
      Rows sum = data[rank++];
      for (int i = 1; i < count; ++i, ++rank) {
        for (size_t j = 0; j < sum.size(); ++j) sum[j] += data[rank][j];
      }
      hosts.push_back(std::move(sum));
    }
    const auto total = static_cast<int64_t>(data[0].size());
    const RowGroups groups = {row_size, codec.group_size};
    const int64_t num_groups = total / row_size * groups.groups_per_row();
    const auto bytes = static_cast<size_t>(EncodedBytes(codec, num_groups));
    std::vector<AlignedBuffer<uint8_t>> codes;
    std::vector<const uint8_t*> pieces;
    for (const Rows& sum : GetParam().size() > 1 ? hosts : data) {
      codes.emplace_back(bytes);
      Encode(codec, groups, sum.data(), 0, num_groups, codes.back().data(), Isa::kRef);
      pieces.push_back(codes.back().data());
    }
    AlignedBuffer<uint8_t> reduced(bytes);
    ReduceEncoded(codec, pieces.data(), static_cast<int>(pieces.size()), num_groups, reduced.data(),
                  Isa::kRef);
    Rows result(data[0].size());
    Decode(codec, groups, reduced.data(), 0, num_groups, result.data(), Isa::kRef);
    return result;
  }
};

TEST_P(Topologies, AllReduceHasTheSameBitsEverywhere) {
  uint32_t seed = 1;
  for (const CodecDesc& codec :
       {CodecDesc{.bits = 4}, CodecDesc{.bits = 6, .group_size = 32}, CodecDesc{.bits = 16}}) {
    const Group group = MakeGroup(GetParam(), With(codec), seed);
    for (const auto& [num_rows, row_size] :
         {std::pair<int64_t, int64_t>{1, 1}, {3, 200}, {1, 4096}, {130, 1100}}) {
      const std::vector<Rows> data = RandomRows(num_rows * row_size, seed++);
      // bf16 is coded value by value: as one row.
      const Rows expected =
          Expected(codec, data, codec.is_integer() ? row_size : num_rows * row_size);
      for (const Rows& result : AllReduce(group, data, num_rows, row_size)) {
        EXPECT_TRUE(SameBits(result, expected))
            << ToString(codec) << " [" << num_rows << ", " << row_size << "]";
      }
    }
  }
}

TEST_P(Topologies, ExactSumsWhateverTheCodec) {
  const Group group = MakeGroup(GetParam(), With({.bits = 2}));
  std::vector<Rows> data(static_cast<size_t>(size()), Rows(9000));
  Rows sum(9000, 0.0F);
  testing::Random random(5);
  for (Rows& rows : data) {
    for (size_t i = 0; i < rows.size(); ++i) {
      rows[i] = static_cast<float>(random.Int(-30000, 30000));
      sum[i] += rows[i];
    }
  }
  for (const Rows& result : AllReduce(group, data, 9, 1000, /*exact=*/true)) {
    EXPECT_EQ(result, sum);
  }
}

// As the rows of an embedding: one rank has a row, the others zeros.
TEST_P(Topologies, ExactSumsOfBf16) {
  const Group group = MakeGroup(GetParam(), With({.bits = 2}));
  std::vector<Rows> data(static_cast<size_t>(size()), Rows(9000, 0.0F));
  Rows sum(9000);
  testing::Random random(6);
  for (size_t i = 0; i < sum.size(); ++i) {
    const float value = random.Normals(1)[0];
    sum[i] = ToFloat(ToBFloat16(value));
    // All but the first row keep the promise; it shows that no more than 16 bits travel.
    data[i / 1000 % data.size()][i] = i < 1000 && GetParam().size() > 1 ? value : sum[i];
  }
  for (const Rows& result : AllReduce(group, data, 9, 1000, /*exact=*/true, /*is_bf16=*/true)) {
    EXPECT_EQ(result, sum);
  }
}

TEST_P(Topologies, ARowsBitsDoNotDependOnItsNeighbours) {
  const Group group = MakeGroup(GetParam(), With({.bits = 5}), 3);
  const std::vector<Rows> data = RandomRows(7 * 1000, 77);
  const Rows all = AllReduce(group, data, 7, 1000)[0];
  for (int64_t row = 0; row < 7; ++row) {
    std::vector<Rows> alone;
    for (const Rows& rows : data) {
      alone.emplace_back(rows.begin() + row * 1000, rows.begin() + (row + 1) * 1000);
    }
    EXPECT_TRUE(SameBits(AllReduce(group, alone, 1, 1000).back(),
                         {all.begin() + row * 1000, all.begin() + (row + 1) * 1000}));
  }
}

TEST_P(Topologies, SmallCollectives) {
  const Group group = MakeGroup(GetParam(), With({.bits = 8}), 11);
  OnRanks(group, [&](GroupCommunicator* rank) {
    for (const size_t bytes : {size_t{1}, size_t{13}, size_t{70'000}}) {
      const std::vector<uint8_t> mine(bytes, static_cast<uint8_t>(rank->rank() + 1));
      std::vector<uint8_t> all(bytes * static_cast<size_t>(size()));
      ASSERT_TRUE(rank->AllGather(mine.data(), bytes, all.data()).ok());
      for (size_t i = 0; i < all.size(); ++i) ASSERT_EQ(all[i], i / bytes + 1);
      for (int root = 0; root < size(); ++root) {
        std::vector<uint8_t> told(bytes, static_cast<uint8_t>(rank->rank()));
        ASSERT_TRUE(rank->Broadcast(told.data(), bytes, root).ok());
        ASSERT_EQ(told, std::vector<uint8_t>(bytes, static_cast<uint8_t>(root)));
      }
    }
    ASSERT_TRUE(rank->AllGather(nullptr, 0, nullptr).ok());
    ASSERT_TRUE(rank->Broadcast(nullptr, 0, 0).ok());
    ASSERT_TRUE(rank->Barrier().ok());
  });
}

// Parts of different sizes, none too, at every root.
TEST_P(Topologies, Gather) {
  const Group group = MakeGroup(GetParam(), With({.bits = 8}), 13);
  std::vector<size_t> bytes;
  std::vector<uint8_t> expected;
  for (int r = 0; r < size(); ++r) {
    bytes.push_back(r == 1 ? 0 : static_cast<size_t>(r * 1000 + 3));
    expected.insert(expected.end(), bytes.back(), static_cast<uint8_t>(r));
  }
  OnRanks(group, [&](GroupCommunicator* rank) {
    const auto me = static_cast<size_t>(rank->rank());
    const std::vector<uint8_t> mine(bytes[me], static_cast<uint8_t>(me));
    for (int root = 0; root < size(); ++root) {
      std::vector<uint8_t> all(expected.size());
      const bool is_root = rank->rank() == root;
      ASSERT_TRUE(
          rank->Gather(mine.data(), bytes.data(), is_root ? all.data() : nullptr, root).ok());
      if (is_root) {
        ASSERT_EQ(all, expected);
      }
    }
  });
}

// Nobody leaves a barrier before the last has come.
TEST_P(Topologies, Barrier) {
  const Group group = MakeGroup(GetParam(), With({.bits = 8}), 17);
  std::atomic<int> arrived{0};
  OnRanks(group, [&](GroupCommunicator* rank) {
    for (int round = 1; round <= 20; ++round) {
      ++arrived;
      ASSERT_TRUE(rank->Barrier().ok());
      ASSERT_GE(arrived.load(), round * size());
      ASSERT_TRUE(rank->Barrier().ok());
    }
  });
}

TEST_P(Topologies, AbortEndsAWaitAndBreaksTheGroup) {
  if (size() == 1) GTEST_SKIP() << "one rank waits for nobody";
  const Group group = MakeGroup(GetParam(), With({.bits = 8}));
  OnRanks(group, [&](GroupCommunicator* rank) {
    if (rank->rank() == 0) {  // never comes
      for (const auto& other : group) other->Abort("formed anew");
      return;
    }
    std::vector<float> data(100'000, 1.0F);
    const AllReduceArgs args = {.data = data.data(), .num_rows = 100, .row_size = 1000};
    EXPECT_EQ(rank->AllReduce(args, nullptr).code(), absl::StatusCode::kAborted);
    EXPECT_EQ(rank->Barrier().code(), absl::StatusCode::kAborted);
  });
}

// A rank that is gone: an error on all others, not only on those that talk to it.
TEST_P(Topologies, ARankThatIsGone) {
  if (size() == 1) GTEST_SKIP() << "one rank waits for nobody";
  Group group = MakeGroup(GetParam(), With({.bits = 8}));
  group.back().reset();
  std::vector<std::thread> threads;
  for (auto& rank : group) {
    if (rank == nullptr) continue;
    threads.emplace_back([&rank] {
      std::vector<float> data(100'000, 1.0F);
      const AllReduceArgs args = {.data = data.data(), .num_rows = 100, .row_size = 1000};
      EXPECT_FALSE(rank->AllReduce(args, nullptr).ok());
      rank.reset();  // the driver ends the generation: those who wait for this one see it
    });
  }
  for (std::thread& thread : threads) thread.join();
}

INSTANTIATE_TEST_SUITE_P(All, Topologies,
                         ::testing::Values(std::vector<int>{1}, std::vector<int>{2},
                                           std::vector<int>{3}, std::vector<int>{1, 1, 1},
                                           std::vector<int>{2, 2}, std::vector<int>{3, 3},
                                           std::vector<int>{2, 1}, std::vector<int>{1, 3, 2},
                                           std::vector<int>{2, 2, 2}),
                         [](const auto& param) {
                           std::string name = "hosts";
                           for (const int count : param.param) name += fmt::format("_{}", count);
                           return name;
                         });

// All ranks leave the measurement with the same total policy.
TEST(MeasurePolicy, AllRanksAgree) {
  const Group group = MakeGroup({2, 1}, With({.bits = 16}));
  std::vector<std::string> policies(group.size());
  OnRanks(group, [&](GroupCommunicator* rank) {
    const MeasureOptions options = {.row_size = 512,
                                    .budget = std::chrono::milliseconds(50),
                                    .min_bytes = 2048,
                                    .max_bytes = 16 << 10};
    const absl::StatusOr<AllReducePolicy> policy = MeasurePolicy(options, rank, nullptr);
    ASSERT_TRUE(policy.ok()) << policy.status();
    policies[static_cast<size_t>(rank->rank())] = Serialize(*policy);
  });
  EXPECT_EQ(policies[1], policies[0]);
  EXPECT_EQ(policies[2], policies[0]);
  EXPECT_TRUE(ParsePolicy(policies[0]).ok()) << policies[0];
}

TEST(MakeThreadGroup, SumsAndCodes) {
  for (const char* name : {"none", "auto", "int4", "bf16"}) {
    for (const int size : {1, 2, 4}) {
      const auto group = MakeThreadGroup(size, *ParseAllReduce(name));
      ASSERT_TRUE(group.ok()) << group.status();
      std::vector<std::thread> threads;
      for (const auto& rank : *group) {
        threads.emplace_back([&rank] {
          std::vector<float> data(3000, 2.0F);
          EXPECT_TRUE(
              rank->AllReduce({.data = data.data(), .num_rows = 3, .row_size = 1000}, nullptr)
                  .ok());
          for (const float value : data) {
            EXPECT_NEAR(value, 2.0F * static_cast<float>(rank->size()), 0.05F);
          }
        });
      }
      for (std::thread& thread : threads) thread.join();
    }
  }
  EXPECT_EQ(MakeThreadGroup(0, {}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MakeThreadGroup(1000, {}).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace nibble::comm
