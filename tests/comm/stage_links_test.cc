// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Links between pipeline stages: shared memory on one host, loopback between what the places call
// different nodes.

#include "comm/stage_links.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <functional>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "comm/group_address.h"

namespace nibble::comm {
namespace {

using std::chrono::milliseconds;
using ::testing::AnyOf;
using ::testing::HasSubstr;

using Links = std::vector<std::unique_ptr<StageLink>>;

// More than any ring or socket buffer holds.
constexpr int64_t kLarge = 1'500'003;

std::string GroupId() { return "stage-links-test-" + std::to_string(getpid()); }

int NumNames() {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
    count += entry.path().string().find(GroupId()) != std::string::npos ? 1 : 0;
  }
  return count;
}

GroupPlace PlaceOf(int rank, const std::vector<int>& node_of_rank, uint64_t generation = 1) {
  return {.rank = rank,
          .node_of_rank = node_of_rank,
          .group_id = GroupId(),
          .generation = generation,
          .bind_address = "127.0.0.1"};
}

void OnRanks(size_t size, const std::function<void(size_t)>& body) {
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < size; ++rank) threads.emplace_back(body, rank);
  for (std::thread& thread : threads) thread.join();
}

struct Forming {
  std::vector<std::unique_ptr<StageLinkMember>> members;
  std::vector<std::string> addresses;
};

Forming PrepareAll(const std::vector<int>& node_of_rank, int num_stages, uint64_t generation = 1) {
  Forming forming;
  for (int rank = 0; rank < static_cast<int>(node_of_rank.size()); ++rank) {
    auto member = StageLinkMember::Prepare(PlaceOf(rank, node_of_rank, generation), num_stages);
    EXPECT_TRUE(member.ok()) << member.status();
    forming.members.push_back(*std::move(member));
    forming.addresses.push_back(forming.members.back()->address());
  }
  return forming;
}

Links Form(const std::vector<int>& node_of_rank, int num_stages,
           milliseconds timeout = milliseconds(60'000)) {
  const Forming forming = PrepareAll(node_of_rank, num_stages);
  Links links(node_of_rank.size());
  OnRanks(links.size(), [&](size_t rank) {
    auto link = forming.members[rank]->Connect(forming.addresses, {.message_timeout = timeout});
    ASSERT_TRUE(link.ok()) << link.status();
    links[rank] = *std::move(link);
  });
  EXPECT_EQ(NumNames(), 0);
  return links;
}

std::vector<float> Values(int64_t count, uint32_t seed) {
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(seed * 77U + i % 9973U);
  return values;
}

// Every stage adds one to what it got and hands it on; sizes of all kinds.
void ExpectHandsOn(const Links& links, int num_stages) {
  const int64_t sizes[] = {0,      1,  3,  131'072, 131'068, 131'069, kLarge, kLarge,  kLarge, 0,
                           65'536, 64, 64, 64,      200'000, 0,       1'000,  131'071, kLarge, 5};
  const size_t stage_size = links.size() / static_cast<size_t>(num_stages);
  OnRanks(links.size(), [&](size_t rank) {
    for (uint32_t n = 0; n < std::size(sizes); ++n) {
      std::vector<float> expected = Values(sizes[n], n + static_cast<uint32_t>(rank % stage_size));
      std::vector<float> got(expected.size(), -1.0F);
      if (rank >= stage_size) {
        ASSERT_TRUE(links[rank]->Receive(got.data(), sizes[n]).ok());
        for (float& value : expected) value += static_cast<float>(rank / stage_size - 1);
        ASSERT_TRUE(got == expected) << "message " << n << " at rank " << rank;
        for (float& value : got) value += 1.0F;
      } else {
        got = expected;
      }
      if (rank + stage_size < links.size()) {
        ASSERT_TRUE(links[rank]->Send(got.data(), sizes[n]).ok());
      }
      std::fill(got.begin(), got.end(), 0.0F);  // what was sent is the link's own
    }
  });
}

struct Topology {
  std::vector<int> node_of_rank;
  int num_stages;
};

class StageLinks : public ::testing::TestWithParam<Topology> {};

TEST_P(StageLinks, HandOnInOrderAndUnchanged) {
  ExpectHandsOn(Form(GetParam().node_of_rank, GetParam().num_stages), GetParam().num_stages);
}

INSTANTIATE_TEST_SUITE_P(Topologies, StageLinks,
                         ::testing::Values(Topology{{0, 0}, 2}, Topology{{0, 0, 0}, 3},
                                           Topology{{0, 0, 0, 0}, 2}, Topology{{0, 1}, 2},
                                           Topology{{0, 0, 1}, 3}, Topology{{0, 1, 2}, 3},
                                           Topology{{0, 0, 1, 1}, 2}, Topology{{0, 0, 0, 1}, 2}));

TEST(ThreadStageLinks, HandOnInOrderAndUnchanged) {
  for (const auto& [num_stages, ranks_per_stage] : {std::pair{1, 2}, {2, 1}, {3, 2}}) {
    auto links = MakeThreadStageLinks(num_stages, ranks_per_stage);
    ASSERT_TRUE(links.ok()) << links.status();
    ASSERT_EQ(links->size(), static_cast<size_t>(num_stages * ranks_per_stage));
    ExpectHandsOn(*links, num_stages);
  }
  EXPECT_EQ(MakeThreadStageLinks(0, 1).status().code(), absl::StatusCode::kInvalidArgument);
}

// One host and two.
class TwoStages : public ::testing::TestWithParam<std::vector<int>> {
 protected:
  Links Make(milliseconds timeout = milliseconds(60'000)) { return Form(GetParam(), 2, timeout); }
};
INSTANTIATE_TEST_SUITE_P(Hosts, TwoStages,
                         ::testing::Values(std::vector<int>{0, 0}, std::vector<int>{0, 1}));

// Nobody takes them yet: here it is the same thread that does so later.
TEST_P(TwoStages, ASendDoesNotWaitForItsReceive) {
  const Links links = Make();
  for (uint32_t n = 0; n < StageLink::kMaxUnsent; ++n) {
    ASSERT_TRUE(links[0]->Send(Values(kLarge, n).data(), kLarge).ok());
  }
  for (uint32_t n = 0; n < StageLink::kMaxUnsent; ++n) {
    std::vector<float> got(kLarge);
    ASSERT_TRUE(links[1]->Receive(got.data(), kLarge).ok());
    EXPECT_TRUE(got == Values(kLarge, n));
  }
}

TEST_P(TwoStages, WhatNobodyTakesEndsAtTheTimeout) {
  const Links links = Make(milliseconds(100));
  const std::vector<float> values = Values(kLarge, 0);
  absl::Status status;
  // The network takes some messages ahead.
  for (int n = 0; n < 20 && status.ok(); ++n) status = links[0]->Send(values.data(), kLarge);
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1"));
  EXPECT_FALSE(links[0]->Send(values.data(), 1).ok());
}

TEST_P(TwoStages, AMessageThatDoesNotComeEndsAtTheTimeout) {
  const Links links = Make(milliseconds(50));
  float value = 0;
  const absl::Status status = links[1]->Receive(&value, 1);
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 0"));
  EXPECT_FALSE(links[1]->Receive(&value, 1).ok());
  // The other side learns of it.
  const std::vector<float> values = Values(kLarge, 0);
  absl::Status sent;
  for (int n = 0; n < 20 && sent.ok(); ++n) sent = links[0]->Send(values.data(), kLarge);
  EXPECT_FALSE(sent.ok());
}

TEST_P(TwoStages, AnotherSizeIsDataLoss) {
  const Links links = Make();
  const std::vector<float> values = Values(10, 0);
  ASSERT_TRUE(links[0]->Send(values.data(), 10).ok());
  std::vector<float> got(20);
  const absl::Status status = links[1]->Receive(got.data(), 20);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  const std::string message(status.message());
  EXPECT_THAT(message, HasSubstr("rank 0"));
  EXPECT_THAT(message, AnyOf(HasSubstr("40 bytes"), HasSubstr("10 values")));
  EXPECT_THAT(message, AnyOf(HasSubstr("expects 80"), HasSubstr("20 were expected")));
  EXPECT_EQ(links[1]->Receive(got.data(), 10).code(), absl::StatusCode::kDataLoss);
}

TEST_P(TwoStages, ANeighbourThatLeavesIsNamed) {
  {
    Links links = Make();
    ASSERT_TRUE(links[0]->Send(Values(3, 1).data(), 3).ok());
    std::vector<float> got(3);
    ASSERT_TRUE(links[1]->Receive(got.data(), 3).ok());
    std::thread leaves([&] { links[0].reset(); });
    const absl::Status status = links[1]->Receive(got.data(), 3);
    leaves.join();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("rank 0"));
  }
  Links links = Make();
  links[1].reset();
  absl::Status status;
  const std::vector<float> values = Values(kLarge, 0);
  for (int n = 0; n < 20 && status.ok(); ++n) status = links[0]->Send(values.data(), kLarge);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1"));
}

// Nor does destroying a link wait for what nobody takes.
TEST_P(TwoStages, AnAbortEndsAllWaits) {
  const Links links = Make();
  float value = 0;
  std::thread aborts([&] { links[1]->Abort("formed anew"); });
  absl::Status status = links[1]->Receive(&value, 1);
  aborts.join();
  EXPECT_EQ(status, absl::AbortedError("formed anew"));
  EXPECT_EQ(links[1]->Receive(&value, 1), status);

  const Links others = Make();
  const std::vector<float> values = Values(kLarge, 0);
  std::thread later([&] {
    std::this_thread::sleep_for(milliseconds(20));
    others[0]->Abort("formed anew");
  });
  status = absl::OkStatus();
  while (status.ok()) status = others[0]->Send(values.data(), kLarge);
  later.join();
  EXPECT_EQ(status, absl::AbortedError("formed anew"));
  EXPECT_EQ(others[0]->Send(values.data(), 1), status);
  // The neighbour's wait ends too.
  std::vector<float> got(kLarge);
  while (others[1]->Receive(got.data(), kLarge).ok()) {
  }
}

TEST_P(TwoStages, WhatNobodyTookIsDropped) {
  const Links links = Make();
  ASSERT_TRUE(links[0]->Send(Values(kLarge, 0).data(), kLarge).ok());
  ASSERT_TRUE(links[0]->Send(Values(kLarge, 0).data(), kLarge).ok());
}

// The first error on one side of a stage in the middle ends the other side's waits.
TEST(StageLinksErrors, GoThroughTheStages) {
  for (const std::vector<int>& nodes : {std::vector<int>{0, 0, 0}, std::vector<int>{0, 1, 2}}) {
    Links links = Form(nodes, 3);
    OnRanks(3, [&](size_t rank) {
      float value = 0;
      if (rank == 0) return links[0].reset();
      const absl::Status status = links[rank]->Receive(&value, 1);
      EXPECT_FALSE(status.ok());
    });
  }
}

TEST_P(TwoStages, ConnectEndsByDeadlineAndAbort) {
  {
    const Forming forming = PrepareAll(GetParam(), 2, 2);
    for (const auto& member : forming.members) {
      const auto link = member->Connect(forming.addresses, {.connect_timeout = milliseconds(30)});
      EXPECT_FALSE(link.ok());
    }
  }
  for (const size_t rank : {0, 1}) {
    const Forming forming = PrepareAll(GetParam(), 2, 3);
    std::thread aborts([&] { forming.members[rank]->Abort("formed anew"); });
    const absl::Status status = forming.members[rank]->Connect(forming.addresses, {}).status();
    aborts.join();
    EXPECT_EQ(status.code(), absl::StatusCode::kAborted) << status;
  }
  EXPECT_EQ(NumNames(), 0);
}

TEST_P(TwoStages, AddressesOfOthersAreRefused) {
  const auto refusal = [&](const std::function<void(std::vector<std::string>*)>& change) {
    const Forming forming = PrepareAll(GetParam(), 2, 7);
    std::vector<std::string> addresses = forming.addresses;
    change(&addresses);
    const auto link =
        forming.members[0]->Connect(addresses, {.connect_timeout = milliseconds(100)});
    EXPECT_EQ(link.status().code(), absl::StatusCode::kInvalidArgument) << link.status();
    return std::string(link.status().message());
  };
  EXPECT_THAT(refusal([](auto* addresses) { addresses->pop_back(); }), HasSubstr("1 addresses"));
  EXPECT_THAT(refusal([](auto* addresses) { (*addresses)[1] = "garbage"; }), HasSubstr("rank 1"));
  EXPECT_THAT(refusal([](auto* addresses) { (*addresses)[1] = (*addresses)[0]; }),
              HasSubstr("0 bytes"));
  EXPECT_THAT(refusal([](auto* addresses) {
                auto ends = *SplitAddresses((*addresses)[1], 2);
                GroupAddress other = *ParseGroupAddress(ends[0]);
                other.generation = 6;
                ends[0] = Serialize(other);
                (*addresses)[1] = JoinAddresses(ends);
              }),
              HasSubstr("in generation 6"));
}

TEST(StageLinksErrors, PlacesThatMakeNoSenseAreRefused) {
  EXPECT_EQ(StageLinkMember::Prepare(PlaceOf(2, {0, 0}), 2).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(JoinedAddresses, ComeApartAsTheyWere) {
  const std::vector<std::string> addresses = {"one", "", std::string("\0three", 6)};
  const std::string joined = JoinAddresses(addresses);
  EXPECT_EQ(*SplitAddresses(joined, 3), addresses);
  for (const size_t count : {0, 1, 2, 4}) {
    EXPECT_EQ(SplitAddresses(joined, count).status().code(), absl::StatusCode::kInvalidArgument);
  }
  for (size_t size = 0; size < joined.size(); ++size) {
    EXPECT_FALSE(SplitAddresses(std::string_view(joined).substr(0, size), 3).ok());
  }
}

}  // namespace
}  // namespace nibble::comm
