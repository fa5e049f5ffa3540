// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Memory that peers may have mapped is never freed, and used again only when nobody can reach it.

#include "comm/gpu/p2p_memory.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/cuda/buffer.h"
#include "base/cuda/device.h"
#include "base/cuda/stream.h"
#include "comm/gpu/exported_memory.h"
#include "tests/comm/gpu/device_ranks.h"

namespace nibble::comm {
namespace {

using ::testing::HasSubstr;

constexpr size_t kBytes = 1000;

class P2pMemoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto devices = gpu::ListDevices();
    ASSERT_TRUE(devices.ok()) << devices.status();
    if (devices->empty()) GTEST_SKIP() << "no CUDA device";
    caps_ = devices->front();
  }

  // Where memory lies that these processes may map.
  uint8_t* Taken(const std::vector<RankProcess>& group) const {
    auto memory = ExportedMemory::Take(caps_.index, kBytes, group);
    EXPECT_TRUE(memory.ok()) << memory.status();
    EXPECT_GE(memory->size(), kBytes);
    return memory->data();
  }

  gpu::DeviceCaps caps_;
};

TEST_F(P2pMemoryTest, IsUsedAgainWhereAllWhoMayHaveMappedItSayTheyDoNot) {
  const RankProcess first = {.id = 1};
  const RankProcess second = {.id = 2};
  const RankProcess third = {.id = 3};
  uint8_t* const memory = Taken({first, second});
  EXPECT_EQ(Taken({first, second}), memory);
  EXPECT_EQ(Taken({second, third, first}), memory);
  // The third one may have it now. It does not come, as if it were dead; or has something mapped.
  EXPECT_NE(Taken({first, second}), memory);
  EXPECT_NE(Taken({first, second, {.id = 3, .num_users = 1}}), memory);
  EXPECT_EQ(Taken({first, second, third}), memory);
}

TEST_F(P2pMemoryTest, WhatIsTakenOrTooSmallIsNotUsedAgain) {
  const std::vector<RankProcess> group = {{.id = 11}};
  auto memory = ExportedMemory::Take(caps_.index, kBytes, group);
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_NE(Taken(group), memory->data());
  auto larger = ExportedMemory::Take(caps_.index, memory->size() + 1, group);
  ASSERT_TRUE(larger.ok()) << larger.status();
  EXPECT_GT(larger->size(), memory->size());
}

TEST_F(P2pMemoryTest, HasALimit) {
  const absl::Status status =
      ExportedMemory::Take(caps_.index, size_t{1} << 40, std::vector<RankProcess>{{.id = 21}})
          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("the limit is 1073741824"));
}

// A rank leaves while a peer still has its memory, and comes back to a group without that one's
// first memory having ended: the peer writes where nobody reads, neither into memory that is freed
// nor into the new group's.
TEST_F(P2pMemoryTest, ALatePeerWritesWhereNobodyReads) {
  const auto group = ThreadGroup(2, {.mode = AllReduceOptions::Mode::kNone});
  OnRanks(group, [&](int rank, Communicator* host, ThreadPool*) {
    auto stream = gpu::Stream::Create();
    ASSERT_TRUE(stream.ok()) << stream.status();
    std::vector<P2pMemory> late;
    uint8_t* first = nullptr;
    {
      auto memory = P2pMemory::Create(host, caps_, kBytes);
      ASSERT_TRUE(memory.ok()) << memory.status();
      first = memory->of_rank()[1];
      if (rank == 0) late.push_back(*std::move(memory));
    }
    ASSERT_TRUE(host->Barrier().ok());
    {
      auto memory = P2pMemory::Create(host, caps_, kBytes);
      ASSERT_TRUE(memory.ok()) << memory.status();
      EXPECT_NE(memory->of_rank()[1], first);
      if (rank == 0) {
        const uint8_t byte = 7;
        EXPECT_TRUE(gpu::CopyToDevice(late[0].of_rank()[1], &byte, 1, stream->get()).ok());
        EXPECT_TRUE(stream->Synchronize().ok());
      }
      ASSERT_TRUE(host->Barrier().ok());
      if (rank == 1) {
        uint8_t byte = 7;
        EXPECT_TRUE(gpu::CopyToHost(&byte, memory->of_rank()[1], 1, stream->get()).ok());
        EXPECT_TRUE(stream->Synchronize().ok());
        EXPECT_EQ(byte, 0);
      }
      late.clear();
    }
    // All have left: the first memory is there for somebody.
    ASSERT_TRUE(host->Barrier().ok());
    auto memory = P2pMemory::Create(host, caps_, kBytes);
    ASSERT_TRUE(memory.ok()) << memory.status();
    ASSERT_TRUE(host->Barrier().ok());
  });
}

}  // namespace
}  // namespace nibble::comm
