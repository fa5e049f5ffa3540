// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/ranks/local_ranks.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <iterator>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/comm/ranks/recorder.h"
#include "tests/comm/ranks/test_rank.h"

namespace nibble::comm {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using Kind = Recorder::Kind;
using std::chrono::milliseconds;

int64_t NumDescriptors() {
  const std::filesystem::directory_iterator files("/proc/self/fd");
  return std::distance(begin(files), end(files));
}

// -1 with ECHILD: this process has no child, dead or alive.
bool HasChildren() { return ::waitpid(-1, nullptr, WNOHANG | WNOWAIT) >= 0; }

LocalRanksOptions Options(int num_ranks) {
  return {.first_rank = 4,
          .num_ranks = num_ranks,
          .command = [](int) { return std::vector<std::string>{NIBBLE_TEST_RANK}; },
          .first_backoff = milliseconds(1),
          .longest_backoff = milliseconds(8)};
}

class LocalRanksTest : public ::testing::Test {
 protected:
  LocalRanksTest() : descriptors_before_(NumDescriptors()) {}
  ~LocalRanksTest() override {
    // reset() clears the pointer before it destroys, and callbacks use the pointer until Stop().
    if (ranks_ != nullptr) ranks_->Stop();
    ranks_.reset();
    EXPECT_EQ(NumDescriptors(), descriptors_before_);
    EXPECT_FALSE(HasChildren());
  }

  void Start(LocalRanksOptions options) {
    const int num_ranks = options.num_ranks;
    auto ranks = LocalRanks::Create(std::move(options));
    ASSERT_TRUE(ranks.ok()) << ranks.status();
    ranks_ = *std::move(ranks);
    ASSERT_TRUE(ranks_->Start(&recorder_).ok());
    for (int i = 0; i < num_ranks; ++i) {
      ASSERT_EQ(recorder_.Next(Kind::kUp, 4 + i).text, "");
    }
  }
  void Tell(int rank, TestMessage message, std::string payload = "") {
    ranks_->Send(rank, {.type = static_cast<uint32_t>(message), .payload = std::move(payload)});
  }
  std::string Ask(int rank, TestMessage message, std::string payload = "") {
    Tell(rank, message, std::move(payload));
    return recorder_.Next(Kind::kFrame, rank).text;
  }
  pid_t PidOf(int rank) const {
    int pid = 0;
    int number = 0;
    EXPECT_EQ(std::sscanf(ranks_->Describe(rank).c_str(), "rank %d (pid %d)", &number, &pid), 2);
    EXPECT_EQ(number, rank);
    return pid;
  }
  void ExpectRestartWorks(int rank) {
    ranks_->Restart(rank, "the test wants it");
    EXPECT_EQ(recorder_.Next(Kind::kUp, rank).text, "");
    EXPECT_EQ(Ask(rank, TestMessage::kEcho, "again"), "again");
  }

  const int64_t descriptors_before_;
  Recorder recorder_;
  std::unique_ptr<LocalRanks> ranks_;
};

TEST_F(LocalRanksTest, CarriesFramesToEachRankAndBack) {
  Start(Options(3));
  for (const int rank : {6, 4, 5}) {
    EXPECT_EQ(Ask(rank, TestMessage::kEcho, "to " + std::to_string(rank)),
              "to " + std::to_string(rank));
  }
  const std::string large(30 << 20, 'z');
  EXPECT_TRUE(Ask(5, TestMessage::kEcho, large) == large);
  for (int i = 0; i < 500; ++i) Tell(4, TestMessage::kEcho, std::to_string(i));
  for (int i = 0; i < 500; ++i) {
    ASSERT_EQ(recorder_.Next(Kind::kFrame, 4).text, std::to_string(i));
  }
}

TEST_F(LocalRanksTest, ARankHasFourDescriptorsAndDefaultSignals) {
  ::signal(SIGUSR1, SIG_IGN);
  Start(Options(2));
  ::signal(SIGUSR1, SIG_DFL);
  // The second rank too: the sockets of the first are not its business.
  EXPECT_EQ(Ask(5, TestMessage::kDescriptors), "4");
  // SIGINT is bit 1, SIGTERM bit 14.
  EXPECT_EQ(Ask(5, TestMessage::kSignals),
            "SigBlk:\t0000000000000000\nSigIgn:\t0000000000004002\n");
}

TEST_F(LocalRanksTest, TellsHowAProcessEnded) {
  Start(Options(2));
  const pid_t first = PidOf(4);
  Tell(4, TestMessage::kExit, "7");
  const Recorder::Event exited = recorder_.Next(Kind::kDown, 4);
  EXPECT_EQ(exited.text, "rank 4 (pid " + std::to_string(first) + "): exited with status 7");
  EXPECT_EQ(exited.reason, LossReason::kExited);
  EXPECT_EQ(ranks_->Describe(4), "rank 4");
  ASSERT_EQ(::kill(PidOf(5), SIGKILL), 0);
  const Recorder::Event killed = recorder_.Next(Kind::kDown, 5);
  EXPECT_THAT(killed.text,
              MatchesRegex("rank 5 \\(pid [0-9]+\\): killed by signal 9 \\(SIGKILL\\)"));
  EXPECT_EQ(killed.reason, LossReason::kKilled);
  ExpectRestartWorks(4);
  ExpectRestartWorks(5);
}

TEST_F(LocalRanksTest, RestartEndsAStoppedProcess) {
  Start(Options(1));
  const pid_t stopped = PidOf(4);
  ASSERT_EQ(::kill(stopped, SIGSTOP), 0);
  ranks_->Restart(4, "silent for 5000 ms");
  EXPECT_EQ(recorder_.Next(Kind::kDown, 4).text,
            "rank 4 (pid " + std::to_string(stopped) + "): silent for 5000 ms: killed");
  EXPECT_EQ(recorder_.Next(Kind::kUp, 4).text, "");
  EXPECT_NE(PidOf(4), stopped);
  EXPECT_EQ(Ask(4, TestMessage::kEcho, "hello"), "hello");
}

TEST_F(LocalRanksTest, ARankThatDoesNotReadIsTakenDown) {
  LocalRanksOptions options = Options(2);
  options.send_timeout = milliseconds(50);
  Start(std::move(options));
  Tell(4, TestMessage::kStopReading);
  Tell(4, TestMessage::kEcho, std::string(8 << 20, 'x'));  // more than a socket takes
  const Recorder::Event down = recorder_.Next(Kind::kDown, 4);
  EXPECT_THAT(down.text, HasSubstr("does not read its channel: "));
  EXPECT_EQ(down.reason, LossReason::kSilent);
  EXPECT_EQ(Ask(5, TestMessage::kEcho, "fine"), "fine");
  ExpectRestartWorks(4);
}

TEST_F(LocalRanksTest, ARankThatLeavesTooMuchUnreadIsTakenDown) {
  LocalRanksOptions options = Options(1);
  options.send_timeout = milliseconds(600'000);
  options.max_unread_bytes = 1 << 20;
  Start(std::move(options));
  Tell(4, TestMessage::kStopReading);
  Tell(4, TestMessage::kEcho, std::string(8 << 20, 'x'));
  EXPECT_THAT(recorder_.Next(Kind::kDown, 4).text, HasSubstr("does not read its channel: "));
}

TEST_F(LocalRanksTest, GarbageTakesTheRankDown) {
  Start(Options(2));
  Tell(4, TestMessage::kWriteGarbage);
  const Recorder::Event down = recorder_.Next(Kind::kDown, 4);
  EXPECT_THAT(down.text, HasSubstr("what came is no frame"));
  EXPECT_EQ(down.reason, LossReason::kFailed);
  Tell(5, TestMessage::kWriteHugeHeader);
  EXPECT_THAT(recorder_.Next(Kind::kDown, 5).text, HasSubstr("the limit is 268435456"));
  ExpectRestartWorks(4);
  ExpectRestartWorks(5);
}

TEST_F(LocalRanksTest, ARankThatClosesItsChannelIsEnded) {
  Start(Options(1));
  Tell(4, TestMessage::kCloseChannel);
  EXPECT_THAT(recorder_.Next(Kind::kDown, 4).text, HasSubstr("closed its channel: killed"));
  ExpectRestartWorks(4);
}

// A rank that dies at once again and again, a driver that asks for it again and again.
TEST_F(LocalRanksTest, DyingAtOnceEndsNothing) {
  LocalRanksOptions options = Options(2);
  options.command = [](int rank) {
    return rank == 4 ? std::vector<std::string>{NIBBLE_TEST_RANK, "fail"}
                     : std::vector<std::string>{NIBBLE_TEST_RANK};
  };
  recorder_.on_event = [this](const Recorder::Event& event) {
    if (event.kind == Kind::kDown) ranks_->Restart(event.rank, "it died");
  };
  Start(std::move(options));
  for (int i = 0; i < 5; ++i) {
    EXPECT_THAT(recorder_.Next(Kind::kDown, 4).text, HasSubstr("exited with status 3"));
    EXPECT_EQ(recorder_.Next(Kind::kUp, 4).text, "");
  }
  EXPECT_EQ(Ask(5, TestMessage::kEcho, "fine"), "fine");
}

// Calls from callbacks and from several threads, with processes dying meanwhile.
TEST_F(LocalRanksTest, AnybodyMayCallAtAnyTime) {
  std::atomic<int> echoes{0};
  recorder_.on_event = [&](const Recorder::Event& event) {
    if (event.kind == Kind::kDown) ranks_->Restart(event.rank, "it died");
    if (event.kind == Kind::kFrame && ++echoes % 2 == 0) {
      ranks_->Send(event.rank, {.type = static_cast<uint32_t>(TestMessage::kEcho)});
    }
  };
  Start(Options(2));
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 2; ++thread) {
    threads.emplace_back([this, thread] {
      for (int i = 0; i < 200; ++i) {
        Tell(4 + i % 2, TestMessage::kEcho, "hello");
        if (i % 50 == 49) ranks_->Restart(4 + thread, "the test wants it");
        if (i % 70 == 69) Tell(4 + thread, TestMessage::kExit, "0");
        static_cast<void>(ranks_->Describe(4 + thread));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  ranks_->Stop();
  // Every rank goes up and down in turn, and gives frames only while it is up.
  bool up[2] = {true, true};
  for (const Recorder::Event& event : recorder_.events()) {
    bool& is_up = up[event.rank - 4];
    EXPECT_EQ(is_up, event.kind != Kind::kUp);
    is_up = event.kind != Kind::kDown;
  }
}

TEST_F(LocalRanksTest, StopEndsAStoppedProcessAndTellsNobody) {
  LocalRanksOptions options = Options(2);
  options.stop_grace = milliseconds(100);
  Start(std::move(options));
  ASSERT_EQ(::kill(PidOf(4), SIGSTOP), 0);
  ranks_->Stop();
  EXPECT_FALSE(HasChildren());
  EXPECT_TRUE(recorder_.events().empty());
  ranks_->Stop();
  ranks_->Send(4, {.type = 1});
  ranks_->Restart(5, "too late");
}

// What was sent before Stop() arrives: the driver's word of farewell.
TEST_F(LocalRanksTest, StopLetsRanksReadWhatWaits) {
  LocalRanksOptions options = Options(1);
  options.stop_grace = milliseconds(60'000);
  Start(std::move(options));
  Tell(4, TestMessage::kEcho, std::string(8 << 20, 'x'));
  Tell(4, TestMessage::kExit, "0");
  ranks_->Stop();
}

TEST_F(LocalRanksTest, StopWithoutStart) {
  auto ranks = LocalRanks::Create(Options(1));
  ASSERT_TRUE(ranks.ok());
  (*ranks)->Stop();
}

TEST_F(LocalRanksTest, OptionsThatMakeNoSense) {
  LocalRanksOptions options = Options(1);
  options.command = [](int) { return std::vector<std::string>{"/no/such/program"}; };
  EXPECT_THAT(LocalRanks::Create(options).status().ToString(),
              HasSubstr("rank 4: the program '/no/such/program' cannot be run"));
  options.num_ranks = 0;
  EXPECT_EQ(LocalRanks::Create(options).status().code(), absl::StatusCode::kInvalidArgument);
}

// kill -9 of the process that started it ends a rank, also one that is stopped and reads nothing.
TEST_F(LocalRanksTest, ARankDoesNotOutliveItsNode) {
  ASSERT_EQ(::prctl(PR_SET_CHILD_SUBREAPER, 1), 0);  // orphans become this process's children
  int output[2];
  ASSERT_EQ(::pipe2(output, O_CLOEXEC), 0);
  const pid_t host = ::fork();
  ASSERT_GE(host, 0);
  if (host == 0) {
    ::dup2(output[1], STDOUT_FILENO);
    ::execl(NIBBLE_TEST_RANK, NIBBLE_TEST_RANK, "host", nullptr);
    ::_exit(127);
  }
  ::close(output[1]);
  char line[64] = {};
  ASSERT_GT(::read(output[0], line, sizeof line - 1), 0);
  ::close(output[0]);
  int rank = 0;
  ASSERT_EQ(std::sscanf(line, "rank 0 (pid %d)", &rank), 1) << line;
  ASSERT_EQ(::kill(rank, SIGSTOP), 0);
  ASSERT_EQ(::kill(host, SIGKILL), 0);
  int status = 0;
  EXPECT_EQ(::waitpid(host, &status, 0), host);
  EXPECT_EQ(::waitpid(rank, &status, 0), rank);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  ::prctl(PR_SET_CHILD_SUBREAPER, 0);
}

}  // namespace
}  // namespace nibble::comm
