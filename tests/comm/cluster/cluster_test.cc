// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A head and a node that go together: frames, restarts, cuts, and the end.

#include <csignal>

#include "tests/comm/cluster/cluster_fixture.h"
#include "tests/comm/cluster/tcp_proxy.h"

namespace nibble::comm {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;

class ClusterTest : public ClusterFixture {};

TEST_F(ClusterTest, RelaysFramesOfAllRanks) {
  StartAll();
  for (int rank = 0; rank < 4; ++rank) {
    EXPECT_EQ(Ask(rank, TestMessage::kEcho, "to " + std::to_string(rank)),
              "to " + std::to_string(rank));
  }
  EXPECT_EQ(Ask(3, TestMessage::kEcho, ""), "");
  // In parts; and in order with what is small.
  for (const size_t size : {size_t{1} << 20, (size_t{1} << 20) + 1, size_t{7} << 20}) {
    const std::string large(size, 'p');
    Tell(2, TestMessage::kEcho, large);
    Tell(2, TestMessage::kEcho, "after");
    EXPECT_TRUE(recorder_.Next(Kind::kFrame, 2).text == large) << size;
    EXPECT_EQ(recorder_.Next(Kind::kFrame, 2).text, "after");
  }
  for (int i = 0; i < 500; ++i) Tell(2 + i % 2, TestMessage::kEcho, std::to_string(i));
  for (int i = 0; i < 500; ++i) {
    ASSERT_EQ(recorder_.Next(Kind::kFrame, 2 + i % 2).text, std::to_string(i));
  }
}

TEST_F(ClusterTest, DescribesRanks) {
  Listen();
  EXPECT_EQ(hub_->size(), 4);
  EXPECT_EQ(hub_->Describe(2), "rank 2 on node 1 (has not joined yet)");
  EXPECT_EQ(hub_->BindAddress(2), "");
  ASSERT_TRUE(hub_->Start(&recorder_).ok());
  NodeOptions options = NodeOptionsFor(options_, hub_->port());
  options.bind_address = "127.0.0.7";
  const NodeThread node(std::move(options));
  EXPECT_EQ(recorder_.Next(Kind::kUp, 3).text, "");
  EXPECT_EQ(hub_->Describe(2), "rank 2 on node 1 (127.0.0.7)");
  EXPECT_EQ(hub_->BindAddress(2), "127.0.0.7");
  EXPECT_EQ(hub_->BindAddress(0), "127.0.0.1");
}

TEST_F(ClusterTest, NodesThatJoinBeforeStartWaitForIt) {
  Listen();
  const std::stop_source none;
  EXPECT_EQ(hub_->WaitForNodes(Deadline::After(milliseconds(5)), none.get_token()),
            absl::DeadlineExceededError("node 1 of 2 did not join"));
  std::stop_source stopped;
  stopped.request_stop();
  EXPECT_EQ(hub_->WaitForNodes(Deadline::After(std::chrono::minutes(5)), stopped.get_token()),
            absl::CancelledError("node 1 of 2 did not join"));
  const NodeThread node(NodeOptionsFor(options_, hub_->port()));
  ASSERT_TRUE(hub_->WaitForNodes(Deadline::After(std::chrono::minutes(1)), none.get_token()).ok());
  EXPECT_EQ(hub_->BindAddress(2), "127.0.0.1");
  EXPECT_TRUE(recorder_.events().empty());
  ASSERT_TRUE(hub_->Start(&recorder_).ok());
  for (int rank = 0; rank < 4; ++rank) EXPECT_EQ(recorder_.Next(Kind::kUp, rank).text, "");
  hub_->Stop();
}

TEST_F(ClusterTest, TellsHowARankEndedAndRestartsIt) {
  StartAll();
  const std::string pid = Ask(3, TestMessage::kPid);
  Tell(3, TestMessage::kExit, "7");
  const Recorder::Event down = recorder_.Next(Kind::kDown, 3);
  EXPECT_EQ(down.text, "node 1 (127.0.0.1): rank 3 (pid " + pid + "): exited with status 7");
  EXPECT_EQ(down.reason, LossReason::kExited);
  Tell(3, TestMessage::kEcho, "nobody hears this");
  hub_->Restart(3, "it died");
  EXPECT_EQ(recorder_.Next(Kind::kUp, 3).text, "");
  EXPECT_EQ(Ask(3, TestMessage::kEcho, "again"), "again");
  // One that is stopped, and one of the head's own.
  const pid_t stopped = std::stoi(Ask(2, TestMessage::kPid));
  ASSERT_EQ(::kill(stopped, SIGSTOP), 0);
  for (const int rank : {2, 1}) {
    hub_->Restart(rank, "silent for 5 s");
    EXPECT_THAT(recorder_.Next(Kind::kDown, rank).text, HasSubstr("silent for 5 s: killed"));
    EXPECT_EQ(recorder_.Next(Kind::kUp, rank).text, "");
    EXPECT_EQ(Ask(rank, TestMessage::kEcho, "again"), "again");
  }
}

TEST_F(ClusterTest, GoodbyeEndsTheNode) {
  StartAll();
  for (int rank = 0; rank < 4; ++rank) Tell(rank, TestMessage::kExit, "0");
  hub_->Stop();
  EXPECT_EQ(node_->Wait(), absl::OkStatus());
  // Nothing of this is told to the observer but what came before Stop().
  hub_->Send(3, {.type = 1});
  hub_->Restart(3, "too late");
  hub_->Stop();
}

// One that is loading, say: it reads no channel and would not end by itself.
TEST_F(ClusterTest, GoodbyeEndsABusyRankOfTheNode) {
  Listen();
  ASSERT_TRUE(hub_->Start(&recorder_).ok());
  NodeOptions options = NodeOptionsFor(options_, hub_->port());
  options.local.stop_grace = milliseconds(50);
  node_ = std::make_unique<NodeThread>(std::move(options));
  for (const int rank : {2, 3}) ASSERT_EQ(recorder_.Next(Kind::kUp, rank).text, "");
  const pid_t busy = std::stoi(Ask(2, TestMessage::kPid));
  ASSERT_EQ(::kill(busy, SIGSTOP), 0);
  hub_->Stop();
  EXPECT_EQ(node_->Wait(), absl::OkStatus());
  EXPECT_EQ(::kill(busy, 0), -1);
}

TEST_F(ClusterTest, ANodeThatEndsTakesItsRanksDown) {
  StartAll();
  node_.reset();
  for (const int rank : {2, 3}) {
    EXPECT_THAT(recorder_.Next(Kind::kDown, rank).text,
                MatchesRegex("rank " + std::to_string(rank) + " on node 1 \\(127.0.0.1\\): .*"));
  }
  EXPECT_EQ(Ask(1, TestMessage::kEcho, "fine"), "fine");
  hub_->Restart(2, "nobody can");
  node_ = std::make_unique<NodeThread>(NodeOptionsFor(options_, hub_->port()));
  for (const int rank : {2, 3}) EXPECT_EQ(recorder_.Next(Kind::kUp, rank).text, "");
  EXPECT_EQ(Ask(3, TestMessage::kEcho, "again"), "again");
}

// Whoever stops all nodes at once cuts no answer: the head has the last word.
TEST_F(ClusterTest, AStopWaitsForTheGoodbye) {
  Listen();
  ASSERT_TRUE(hub_->Start(&recorder_).ok());
  NodeOptions options = NodeOptionsFor(options_, hub_->port());
  options.goodbye_timeout = std::chrono::minutes(10);
  node_ = std::make_unique<NodeThread>(std::move(options));
  for (int rank = 0; rank < 4; ++rank) ASSERT_EQ(recorder_.Next(Kind::kUp, rank).text, "");
  node_->RequestStop();
  for (int i = 0; i < 20; ++i) ExpectGroupGoesOn();
  for (int rank = 0; rank < 4; ++rank) Tell(rank, TestMessage::kExit, "0");
  hub_->Stop();
  EXPECT_EQ(node_->Wait(), absl::OkStatus());
}

TEST_F(ClusterTest, AStopWaitsForNoLostHeadAndNotForever) {
  for (const bool head_dies : {true, false}) {
    Listen();
    Recorder recorder;
    ASSERT_TRUE(hub_->Start(&recorder).ok());
    NodeOptions options = NodeOptionsFor(options_, hub_->port());
    options.goodbye_timeout = head_dies ? std::chrono::minutes(10) : std::chrono::milliseconds(50);
    NodeThread node(std::move(options));
    for (int rank = 0; rank < 4; ++rank) ASSERT_EQ(recorder.Next(Kind::kUp, rank).text, "");
    node.RequestStop();
    if (head_dies) hub_.reset();
    EXPECT_EQ(node.Wait(), absl::OkStatus());
    hub_.reset();
  }
}

// Nothing of it is in progress.
TEST_F(ClusterTest, AStopBeforeTheStartEndsAtOnce) {
  Listen();
  NodeOptions options = NodeOptionsFor(options_, hub_->port());
  options.goodbye_timeout = std::chrono::minutes(10);
  NodeThread node(std::move(options));
  const std::stop_source none;
  ASSERT_TRUE(hub_->WaitForNodes(Deadline::After(std::chrono::minutes(1)), none.get_token()).ok());
  node.RequestStop();
  EXPECT_EQ(node.Wait(), absl::OkStatus());
}

TEST_F(ClusterTest, ANodeWaitsForItsHead) {
  Listen();
  const int port = hub_->port();
  hub_.reset();
  NodeThread patient(NodeOptionsFor(options_, port));
  NodeThread stopped(NodeOptionsFor(options_, port));
  stopped.RequestStop();
  EXPECT_EQ(stopped.Wait(), absl::OkStatus());
  options_.port = port;
  Listen();
  const std::stop_source none;
  EXPECT_TRUE(hub_->WaitForNodes(Deadline::After(std::chrono::minutes(1)), none.get_token()).ok());
}

TEST_F(ClusterTest, CallbacksMayCall) {
  recorder_.on_event = [this](const Recorder::Event& event) {
    if (event.kind == Kind::kDown) hub_->Restart(event.rank, "it died");
    if (event.kind == Kind::kUp) {
      hub_->Send(event.rank, {.type = static_cast<uint32_t>(TestMessage::kEcho),
                              .payload = hub_->Describe(event.rank)});
    }
  };
  StartAll();
  for (int round = 0; round < 3; ++round) {
    for (int rank = 0; rank < 4; ++rank) {
      EXPECT_THAT(recorder_.Next(Kind::kFrame, rank).text,
                  HasSubstr("rank " + std::to_string(rank)));
      Tell(rank, TestMessage::kExit, "1");
      EXPECT_THAT(recorder_.Next(Kind::kDown, rank).text, HasSubstr("exited with status 1"));
    }
  }
}

// These tests wait for a silence to be noticed. It is longer than a machine under load may keep a
// thread waiting.
class CutTest : public ClusterFixture {
 protected:
  CutTest() { options_.heartbeat = {.interval = milliseconds(50), .timeout = milliseconds(3000)}; }
  void StartBehindProxy(std::optional<Frame> link_lost_frame = std::nullopt) {
    Listen();
    ASSERT_TRUE(hub_->Start(&recorder_).ok());
    proxy_ = std::make_unique<TcpProxy>(hub_->port());
    NodeOptions options = NodeOptionsFor(options_, proxy_->port());
    options.link_lost_frame = std::move(link_lost_frame);
    node_ = std::make_unique<NodeThread>(std::move(options));
    for (int rank = 0; rank < 4; ++rank) ASSERT_EQ(recorder_.Next(Kind::kUp, rank).text, "");
  }
  ~CutTest() override { node_.reset(); }

  std::unique_ptr<TcpProxy> proxy_;
};

TEST_F(CutTest, RanksOutliveACutAndDeadOnesAreStartedAnew) {
  StartBehindProxy();
  const std::string kept = Ask(2, TestMessage::kPid);
  const std::string killed = Ask(3, TestMessage::kPid);
  proxy_->Cut();
  for (const int rank : {2, 3}) {
    const Recorder::Event down = recorder_.Next(Kind::kDown, rank);
    EXPECT_EQ(down.text, "rank " + std::to_string(rank) +
                             " on node 1 (127.0.0.1): nothing was heard from it for 3000 ms");
    EXPECT_EQ(down.reason, LossReason::kUnreachable);
  }
  EXPECT_EQ(Ask(1, TestMessage::kEcho, "fine"), "fine");
  Tell(2, TestMessage::kEcho, "lost");
  ASSERT_EQ(::kill(std::stoi(killed), SIGKILL), 0);
  proxy_->Heal(hub_->port());
  for (const int rank : {2, 3}) EXPECT_EQ(recorder_.Next(Kind::kUp, rank).text, "");
  EXPECT_EQ(Ask(2, TestMessage::kPid), kept);
  EXPECT_NE(Ask(3, TestMessage::kPid), killed);
}

// The rank of a node that is cut off leaves what it waits for because the node tells it.
TEST_F(CutTest, RanksAreToldThatTheLinkIsLost) {
  StartBehindProxy(Frame{.type = static_cast<uint32_t>(TestMessage::kExit), .payload = "0"});
  const std::string before = Ask(2, TestMessage::kPid);
  proxy_->Cut();
  EXPECT_THAT(recorder_.Next(Kind::kDown, 2).text, HasSubstr("nothing was heard"));
  proxy_->Heal(hub_->port());
  EXPECT_EQ(recorder_.Next(Kind::kUp, 2).text, "");
  EXPECT_NE(Ask(2, TestMessage::kPid), before);
}

TEST_F(CutTest, RanksOfAnotherHeadAreStartedAnew) {
  StartBehindProxy();
  const std::string before = Ask(2, TestMessage::kPid);
  Recorder second_recorder;
  auto second = ClusterHub::Listen(options_);
  ASSERT_TRUE(second.ok());
  ASSERT_TRUE((*second)->Start(&second_recorder).ok());
  proxy_->Cut();
  EXPECT_THAT(recorder_.Next(Kind::kDown, 2).text, HasSubstr("nothing was heard"));
  proxy_->Heal((*second)->port());
  EXPECT_EQ(second_recorder.Next(Kind::kUp, 2).text, "");
  (*second)->Send(2, {.type = static_cast<uint32_t>(TestMessage::kPid)});
  EXPECT_NE(second_recorder.Next(Kind::kFrame, 2).text, before);
  node_.reset();
}

// A head that is gone without a word: the node tries until it is told to stop.
TEST_F(CutTest, StopWhileTheHeadIsSilent) {
  StartBehindProxy();
  proxy_->Cut();
  EXPECT_THAT(recorder_.Next(Kind::kDown, 2).text, HasSubstr("nothing was heard"));
  node_->RequestStop();
  EXPECT_EQ(node_->Wait(), absl::OkStatus());
}

}  // namespace
}  // namespace nibble::comm
