// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Ranks that are processes: killed and stopped while they stream.

#include <csignal>
#include <cstdio>
#include <mutex>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "comm/ranks/local_ranks.h"
#include "tests/engine/exec/rank_rig.h"
#include "tests/testing/random.h"

namespace nibble::engine {
namespace {

using std::chrono::milliseconds;
using testing::Answers;
using testing::AnswersOfOneRank;
using testing::GroupId;
using ::testing::HasSubstr;
using testing::NumLeftovers;

std::unique_ptr<comm::RankHub> Processes(int size, int num_stages = 1) {
  auto hub = comm::LocalRanks::Create({.num_ranks = size,
                                       .command =
                                           [size, num_stages](int rank) {
                                             return std::vector<std::string>{
                                                 NIBBLE_TEST_RANK, std::to_string(rank),
                                                 std::to_string(size), std::to_string(num_stages),
                                                 testing::kModelDir};
                                           },
                                       .first_backoff = milliseconds(1),
                                       .longest_backoff = milliseconds(20)});
  EXPECT_TRUE(hub.ok()) << hub.status();
  return *std::move(hub);
}

// Of "rank 1 (pid 4711)"; -1 while there is none.
pid_t PidOf(const comm::RankHub& hub, int rank) {
  const std::string name = hub.Describe(rank);
  const size_t at = name.find("(pid ");
  return at == std::string::npos ? -1 : std::atoi(name.c_str() + at + 5);
}

class Losses final : public RankGroupObserver {
 public:
  void OnRankLost(int /*rank*/, comm::LossReason /*reason*/, const std::string& why) override {
    const std::lock_guard lock(mutex_);
    whys_ += why + "\n";
  }
  void OnBroken(const std::string& /*why*/) override {}
  void OnFormed(uint64_t /*generation*/, double /*seconds*/) override {}
  std::string whys() const {
    const std::lock_guard lock(mutex_);
    return whys_;
  }

 private:
  mutable std::mutex mutex_;
  std::string whys_;
};

void WaitForSteps(Engine* engine, int64_t count) {
  const int64_t step = engine->Stats().num_steps + count;
  const auto patience = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  const auto has_work = [&] {
    const EngineStats stats = engine->Stats();
    return stats.num_running + stats.num_waiting > 0;
  };
  while (engine->Stats().num_steps < step && has_work() &&
         std::chrono::steady_clock::now() < patience) {
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
}

TEST(RankProcessTest, ProcessesThatAreKilledChangeNoToken) {
  const auto expected = AnswersOfOneRank();
  auto processes = Processes(2);
  comm::RankHub* hub = processes.get();
  auto group = testing::StartGroup(std::move(processes), testing::GroupOptions(2, "killed"));
  ASSERT_TRUE(group.ok()) << group.status();
  testing::Random random(4);
  const auto answers = Answers(*std::move(group), [&](Engine* engine) {
    for (int n = 0; n < 4; ++n) {
      WaitForSteps(engine, random.Int(1, 4));
      const pid_t pid = PidOf(*hub, static_cast<int>(random.Int(0, 1)));
      if (pid > 0) kill(pid, SIGKILL);
    }
  });
  EXPECT_EQ(answers, expected);
  EXPECT_EQ(NumLeftovers(GroupId("killed")), 0);
}

TEST(RankProcessTest, StagesThatAreKilledChangeNoToken) {
  const auto expected = AnswersOfOneRank();
  testing::Random random(5);
  for (const int size : {2, 4}) {
    auto processes = Processes(size, 2);
    comm::RankHub* hub = processes.get();
    auto group =
        testing::StartGroup(std::move(processes), testing::GroupOptions(size, "stages", 2));
    ASSERT_TRUE(group.ok()) << group.status();
    const auto answers = Answers(*std::move(group), [&](Engine* engine) {
      for (int n = 0; n < 3; ++n) {
        WaitForSteps(engine, random.Int(1, 4));
        const pid_t pid = PidOf(*hub, static_cast<int>(random.Int(0, size - 1)));
        if (pid > 0) kill(pid, SIGKILL);
      }
    });
    EXPECT_EQ(answers, expected) << size << " ranks";
    EXPECT_EQ(NumLeftovers(GroupId("stages")), 0);
  }
}

TEST(RankProcessTest, AProcessThatIsStoppedIsNamedAndReplaced) {
  const auto expected = AnswersOfOneRank();
  auto processes = Processes(2, 2);
  comm::RankHub* hub = processes.get();
  Losses losses;
  RankGroupOptions options = testing::GroupOptions(2, "stopped", 2);
  options.rank_timeout = milliseconds(1'000);
  auto group = testing::StartGroup(std::move(processes), options, &losses);
  ASSERT_TRUE(group.ok()) << group.status();
  std::string name;
  const auto answers = Answers(*std::move(group), [&](Engine* engine) {
    WaitForSteps(engine, 2);
    name = hub->Describe(1);
    kill(PidOf(*hub, 1), SIGSTOP);
  });
  EXPECT_EQ(answers, expected);
  EXPECT_THAT(losses.whys(), HasSubstr(name + ": no answer for "));
  EXPECT_EQ(NumLeftovers(GroupId("stopped")), 0);
}

}  // namespace
}  // namespace nibble::engine
