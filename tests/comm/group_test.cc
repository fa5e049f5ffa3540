// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Forming groups as ranks do, here by threads: shared memory of this host, loopback between what
// the places call different nodes.

#include "comm/group.h"

#include <unistd.h>

#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "comm/group_address.h"

namespace nibble::comm {
namespace {

using ::testing::HasSubstr;

GroupPlace PlaceOf(int rank, const std::vector<int>& node_of_rank, uint64_t generation = 0) {
  return {.rank = rank,
          .node_of_rank = node_of_rank,
          .group_id = "group-test-" + std::to_string(getpid()),
          .generation = generation,
          .bind_address = "127.0.0.1"};
}

std::vector<std::unique_ptr<GroupMember>> PrepareAll(const std::vector<int>& node_of_rank,
                                                     uint64_t generation) {
  std::vector<std::unique_ptr<GroupMember>> members;
  for (int rank = 0; rank < static_cast<int>(node_of_rank.size()); ++rank) {
    auto member = GroupMember::Prepare(PlaceOf(rank, node_of_rank, generation));
    EXPECT_TRUE(member.ok()) << member.status();
    members.push_back(std::move(*member));
  }
  return members;
}

std::vector<std::string> AddressesOf(const std::vector<std::unique_ptr<GroupMember>>& members) {
  std::vector<std::string> addresses;
  for (const auto& member : members) addresses.push_back(member->address());
  return addresses;
}

void OnRanks(size_t size, const std::function<void(size_t)>& body) {
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < size; ++rank) threads.emplace_back(body, rank);
  for (std::thread& thread : threads) thread.join();
}

class FormedGroup : public ::testing::TestWithParam<std::vector<int>> {};

TEST_P(FormedGroup, ConnectsAndSums) {
  const size_t size = GetParam().size();
  for (const char* name : {"none", "int8", "auto"}) {
    const auto members = PrepareAll(GetParam(), 1);
    const std::vector<std::string> addresses = AddressesOf(members);
    std::vector<std::string> policies(size);
    OnRanks(size, [&](size_t rank) {
      ConnectOptions options = {.all_reduce = *ParseAllReduce(name), .row_size = 256};
      // Measuring has its own test.
      options.policy = *ParsePolicy("9223372036854775807,two-shot,6,128,bf16,-,-");
      auto communicator = members[rank]->Connect(addresses, options, nullptr);
      ASSERT_TRUE(communicator.ok()) << communicator.status();
      policies[rank] = Serialize((*communicator)->policy());
      std::vector<float> data(2000, static_cast<float>(rank + 1));
      ASSERT_TRUE((*communicator)
                      ->AllReduce({.data = data.data(), .num_rows = 5, .row_size = 400}, nullptr)
                      .ok());
      const auto sum = static_cast<float>(size * (size + 1) / 2);
      for (const float value : data) ASSERT_NEAR(value, sum, sum * 0.02F);
      ASSERT_TRUE((*communicator)->Barrier().ok());  // nobody leaves while others still read
    });
    for (const std::string& policy : policies) EXPECT_EQ(policy, policies[0]);
  }
}

INSTANTIATE_TEST_SUITE_P(Topologies, FormedGroup,
                         ::testing::Values(std::vector<int>{0}, std::vector<int>{0, 0, 0},
                                           std::vector<int>{0, 1}, std::vector<int>{0, 0, 4, 4}));

TEST(GroupMember, PlacesThatMakeNoSenseAreRefused) {
  GroupPlace place = PlaceOf(0, {0, 0});
  const auto message = [](const GroupPlace& wrong) {
    const absl::Status status = GroupMember::Prepare(wrong).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(message(PlaceOf(2, {0, 0})), HasSubstr("rank 2 of a group of 2"));
  EXPECT_THAT(message(PlaceOf(-1, {0, 0})), HasSubstr("rank -1"));
  EXPECT_THAT(message(PlaceOf(0, {})), HasSubstr("without ranks"));
  EXPECT_THAT(message(PlaceOf(0, {1, 0})), HasSubstr("rank 1 is on node 0"));
  place.group_id = "a/b";
  EXPECT_THAT(message(place), HasSubstr("a/b"));
  place.group_id = "";
  EXPECT_THAT(message(place), HasSubstr("letters"));
}

TEST(GroupMember, AddressesOfOthersAreRefused) {
  const auto connect = [](const std::function<void(std::vector<std::string>*)>& change) {
    const auto members = PrepareAll({0, 0}, 7);
    std::vector<std::string> addresses = AddressesOf(members);
    change(&addresses);
    const auto communicator = members[0]->Connect(
        addresses, {.connect_timeout = std::chrono::milliseconds(100)}, nullptr);
    EXPECT_EQ(communicator.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(communicator.status().message());
  };
  EXPECT_THAT(connect([](auto* addresses) { addresses->pop_back(); }), HasSubstr("1 addresses"));
  EXPECT_THAT(connect([](auto* addresses) { (*addresses)[1] = "garbage"; }), HasSubstr("rank 1"));
  EXPECT_THAT(connect([](auto* addresses) { (*addresses)[1] = (*addresses)[0]; }),
              HasSubstr("is of rank 0"));
  EXPECT_THAT(connect([](auto* addresses) {
                GroupAddress other = *ParseGroupAddress((*addresses)[1]);
                other.generation = 6;
                (*addresses)[1] = Serialize(other);
              }),
              HasSubstr("in generation 6"));
}

// A rank that never comes: the others' wait ends, by the deadline or by Abort.
TEST(GroupMember, ConnectEnds) {
  for (const std::vector<int>& nodes : {std::vector<int>{0, 0}, std::vector<int>{0, 1}}) {
    const auto members = PrepareAll(nodes, 9);
    const std::vector<std::string> addresses = AddressesOf(members);
    const auto communicator =
        members[0]->Connect(addresses, {.connect_timeout = std::chrono::milliseconds(50)}, nullptr);
    EXPECT_FALSE(communicator.ok());
  }
  for (const std::vector<int>& nodes : {std::vector<int>{0, 0}, std::vector<int>{0, 1}}) {
    const auto members = PrepareAll(nodes, 10);
    const std::vector<std::string> addresses = AddressesOf(members);
    std::thread abort([&] { members[0]->Abort("formed anew"); });
    const absl::Status status = members[0]->Connect(addresses, {}, nullptr).status();
    abort.join();
    EXPECT_EQ(status.code(), absl::StatusCode::kAborted) << status;
  }
}

// The error of one host reaches the ranks of the other, whose peer there still lives: they do not
// wait for their timeout.
TEST(GroupMember, AnErrorInSharedMemoryEndsTheOtherHostsWaits) {
  const auto members = PrepareAll({0, 0, 1}, 11);
  const std::vector<std::string> addresses = AddressesOf(members);
  std::vector<std::unique_ptr<Communicator>> group(members.size());
  OnRanks(members.size(), [&](size_t rank) {
    auto communicator =
        members[rank]->Connect(addresses,
                               {.all_reduce = {.mode = AllReduceOptions::Mode::kNone},
                                .operation_timeout = std::chrono::seconds(20)},
                               nullptr);
    ASSERT_TRUE(communicator.ok()) << communicator.status();
    group[rank] = *std::move(communicator);
  });
  ASSERT_TRUE(group[0] != nullptr && group[1] != nullptr && group[2] != nullptr);
  group[1].reset();
  OnRanks(members.size(), [&](size_t rank) {
    if (rank == 1) return;
    std::vector<float> data(4000, 1.0F);
    const AllReduceArgs args = {.data = data.data(), .num_rows = 4, .row_size = 1000};
    const absl::Status status = group[rank]->AllReduce(args, nullptr);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(rank == 0 ? "rank 1" : "rank 0"));
  });
}

}  // namespace
}  // namespace nibble::comm
