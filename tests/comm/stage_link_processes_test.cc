// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Links between stages that are processes, one of which dies.

#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "comm/stage_links.h"
#include "tests/comm/shm/child_process.h"

namespace nibble::comm {
namespace {

using ::testing::HasSubstr;

// More than the ring holds.
constexpr int64_t kLarge = 1'000'000;

class StageLinkProcesses : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<StageLink>> Connect(size_t rank) {
    return members_[rank]->Connect(addresses_, {});
  }
  void SetUp() override {
    for (int rank = 0; rank < 2; ++rank) {
      auto member = StageLinkMember::Prepare(
          {.rank = rank, .node_of_rank = {0, 0}, .group_id = group_id_, .generation = 1}, 2);
      ASSERT_TRUE(member.ok()) << member.status();
      members_.push_back(*std::move(member));
      addresses_.push_back(members_.back()->address());
    }
  }
  void TearDown() override { RemoveLeftovers(group_id_, 1); }

  const std::string group_id_ = "stage-link-processes-" + std::to_string(getpid());
  std::vector<std::unique_ptr<StageLinkMember>> members_;
  std::vector<std::string> addresses_;
};

TEST_F(StageLinkProcesses, ASenderThatDiesIsNamed) {
  ChildProcess sender([&]() -> std::string {
    auto link = Connect(0);
    if (!link.ok()) return link.status().ToString();
    const float value = 7.0F;
    if (!(*link)->Send(&value, 1).ok()) return "the first message did not leave";
    for (;;) pause();
  });
  ChildProcess receiver([&]() -> std::string {
    auto link = Connect(1);
    if (!link.ok()) return link.status().ToString();
    float value = 0.0F;
    if (!(*link)->Receive(&value, 1).ok() || value != 7.0F) return "the first message did not come";
    kill(sender.pid(), SIGKILL);
    return (*link)->Receive(&value, 1).ToString();
  });
  EXPECT_THAT(receiver.Result(),
              HasSubstr("UNAVAILABLE: rank 0 (pid " + std::to_string(sender.pid()) + ") is gone"));
}

TEST_F(StageLinkProcesses, ASenderThatDiesInTheMiddleOfAMessageIsNamed) {
  ChildProcess sender([&]() -> std::string {
    auto link = Connect(0);
    if (!link.ok()) return link.status().ToString();
    const std::vector<float> values(kLarge, 1.0F);
    if (!(*link)->Send(values.data(), 1).ok()) return "the first message did not leave";
    if (!(*link)->Send(values.data(), kLarge).ok()) return "the second message was not taken";
    for (;;) pause();
  });
  ChildProcess receiver([&]() -> std::string {
    auto link = Connect(1);
    if (!link.ok()) return link.status().ToString();
    std::vector<float> values(kLarge);
    if (!(*link)->Receive(values.data(), 1).ok()) return "the first message did not come";
    kill(sender.pid(), SIGKILL);  // nobody takes the second message until then
    return (*link)->Receive(values.data(), kLarge).ToString();
  });
  EXPECT_THAT(receiver.Result(),
              HasSubstr("UNAVAILABLE: rank 0 (pid " + std::to_string(sender.pid()) + ") is gone"));
}

TEST_F(StageLinkProcesses, AReceiverThatDiesIsNamed) {
  ChildProcess receiver([&]() -> std::string {
    auto link = Connect(1);
    if (!link.ok()) return link.status().ToString();
    for (;;) pause();
  });
  ChildProcess sender([&]() -> std::string {
    auto link = Connect(0);
    if (!link.ok()) return link.status().ToString();
    kill(receiver.pid(), SIGKILL);
    const std::vector<float> values(kLarge, 1.0F);
    absl::Status status;
    while (status.ok()) status = (*link)->Send(values.data(), kLarge);
    return status.ToString();
  });
  EXPECT_THAT(sender.Result(), HasSubstr("UNAVAILABLE: rank 1 (pid " +
                                         std::to_string(receiver.pid()) + ") is gone"));
}

}  // namespace
}  // namespace nibble::comm
