// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Calls that do not follow the protocol, and calls that end in the middle of it.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <functional>
#include <future>

#include "grpcpp/grpcpp.h"

#include "comm/cluster/handshake.h"
#include "comm/cluster/members.h"
#include "tests/comm/cluster/cluster_fixture.h"
#include "tests/comm/cluster/raw_node.h"
#include "tests/comm/cluster/tcp_proxy.h"

namespace nibble::comm {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

class ProtocolTest : public ClusterFixture {
 protected:
  ProtocolTest() { options_.shape = {.num_nodes = 2, .ranks_per_node = 2}; }
  void Start() {
    Listen();
    ASSERT_TRUE(hub_->Start(&recorder_).ok());
    for (int rank = 0; rank < 2; ++rank) ASSERT_EQ(recorder_.Next(Kind::kUp, rank).text, "");
  }
  RawNode MakeRaw() { return {hub_->port(), options_.security.secret}; }
};

TEST_F(ProtocolTest, HandshakesThatAreNone) {
  Start();
  {
    RawNode node = MakeRaw();
    node.Hello(kClusterProtocol + 1);
    node.ExpectEnd(grpc::StatusCode::FAILED_PRECONDITION, "run the same nibble version");
  }
  {
    RawNode node = MakeRaw();
    node.Hello(kClusterProtocol, 31);
    node.ExpectEnd(grpc::StatusCode::INVALID_ARGUMENT, "a nonce of 31 bytes");
  }
  {
    RawNode node = MakeRaw();
    node.Up(2);
    node.ExpectEnd(grpc::StatusCode::INVALID_ARGUMENT, "did not begin with Hello");
  }
  {
    RawNode node = MakeRaw();
    node.Hello();
    node.Up(2);
    node.ExpectEnd(grpc::StatusCode::INVALID_ARGUMENT, "JoinRequest");
  }
  for (const uint32_t number : {0U, 2U, 0xffff'ffffU}) {
    RawNode node = MakeRaw();
    node.Hello();
    node.Join([&](v1::JoinRequest* join) { join->set_node(number); });
    node.ExpectEnd(grpc::StatusCode::INVALID_ARGUMENT, "nodes that join are numbered 1 to 1");
  }
  for (const char* address : {"", "0.0.0.0", "::0", "example.com", "127.0.0.1; rm"}) {
    RawNode node = MakeRaw();
    node.Hello();
    node.Join([&](v1::JoinRequest* join) { join->set_bind_address(address); });
    node.ExpectEnd(grpc::StatusCode::INVALID_ARGUMENT, "no address of an interface");
  }
  {
    RawNode node = MakeRaw();
    node.Hello();
    node.Join([](v1::JoinRequest* join) { join->set_version(std::string(257, 'v')); });
    node.ExpectEnd(grpc::StatusCode::INVALID_ARGUMENT, "a text of 257 bytes");
  }
  {
    // gRPC itself refuses what is larger than any message of ours.
    RawNode node = MakeRaw();
    node.FrameOf(2, std::string(3 << 20, 'x'));
    node.ExpectEnd(grpc::StatusCode::RESOURCE_EXHAUSTED, "");
  }
  EXPECT_EQ(Ask(0, TestMessage::kEcho, "fine"), "fine");
}

TEST_F(ProtocolTest, ProofsThatAreNone) {
  Start();
  {
    RawNode node(hub_->port(), "");
    node.Hello();
    node.Join();
    node.ExpectEnd(grpc::StatusCode::UNAUTHENTICATED, "it has no secret and the head has one");
  }
  // One that was seen on the wire is of no use with the next nonce.
  RawNode seen = MakeRaw();
  seen.Hello();
  const std::string proof = seen.Join();
  EXPECT_TRUE(seen.Read().has_welcome());
  seen.Cancel();
  RawNode replay = MakeRaw();
  replay.Hello();
  replay.Join({}, proof);
  replay.ExpectEnd(grpc::StatusCode::UNAUTHENTICATED, "its secret is not the head's");
}

TEST_F(ProtocolTest, MessagesThatDoNotBelong) {
  Start();
  const auto expect_end = [&](const std::function<void(RawNode*)>& speak, const std::string& text) {
    RawNode node = MakeRaw();
    node.JoinWholly();
    speak(&node);
    node.ExpectEnd(grpc::StatusCode::INVALID_ARGUMENT, text);
  };
  expect_end([](RawNode* node) { node->Up(1); }, "rank 1 is not one of node 1: it has 2 to 3");
  expect_end([](RawNode* node) { node->Up(4); }, "rank 4 is not one of node 1");
  expect_end([](RawNode* node) { node->FrameOf(2, "x"); }, "a frame of rank 2, which is down");
  expect_end([](RawNode* node) { node->Hello(); }, "does not belong here");
  EXPECT_TRUE(recorder_.events().empty());
  expect_end([](RawNode* node) { node->Up(2), node->Up(2); }, "rank 2 is up twice");
  expect_end([](RawNode* node) { node->Up(2), node->FrameOf(2, "x", 5), node->FrameOf(2, "y", 3); },
             "misses a part");
  expect_end([](RawNode* node) { node->Up(2), node->FrameOf(2, "x", 256 << 20); },
             "the limit is 268435456");
  expect_end([](RawNode* node) { node->Up(3), node->Down(3, kLastLossReason + 1); },
             "rank 3 is down for reason 6, the last one is 5");
  // Up, and down again with the reason, each time.
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(recorder_.Next(Kind::kUp, 2).text, "");
    EXPECT_NE(recorder_.Next(Kind::kDown, 2).text, "(nothing came)");
  }
  EXPECT_EQ(Ask(0, TestMessage::kEcho, "fine"), "fine");
}

TEST_F(ProtocolTest, ANodeThatVanishesIsDownAndMayComeBack) {
  Start();
  RawNode node = MakeRaw();
  node.JoinWholly();
  node.Up(2);
  EXPECT_EQ(recorder_.Next(Kind::kUp, 2).text, "");
  {
    RawNode twin = MakeRaw();
    twin.Hello();
    twin.Join();
    twin.ExpectEnd(grpc::StatusCode::ALREADY_EXISTS, "node 1 is a member already, at 127.0.0.1:");
  }
  node.Cancel();
  EXPECT_THAT(recorder_.Next(Kind::kDown, 2).text, HasSubstr("rank 2 on node 1 (127.0.0.1): "));
  RawNode again = MakeRaw();
  again.JoinWholly();
  again.Up(2);
  EXPECT_EQ(recorder_.Next(Kind::kUp, 2).text, "");
}

TEST_F(ProtocolTest, SilenceEndsACall) {
  options_.heartbeat = {.interval = milliseconds(50), .timeout = milliseconds(3000)};
  Start();
  RawNode stranger = MakeRaw();
  RawNode member = MakeRaw();
  member.JoinWholly();
  member.Up(3);
  EXPECT_THAT(recorder_.Next(Kind::kDown, 3).text,
              HasSubstr("nothing was heard from it for 3000 ms"));
  EXPECT_FALSE(stranger.End().ok());
  EXPECT_FALSE(member.End().ok());
}

// Whoever may reach the port, but has no secret, does not keep nodes of other hosts out.
TEST_F(ProtocolTest, StrangersOfOneHostAreLimited) {
  Start();
  std::vector<std::unique_ptr<RawNode>> strangers;
  for (int i = 0; i < 8; ++i) {
    strangers.push_back(std::make_unique<RawNode>(hub_->port(), ""));
    strangers.back()->Hello();
    EXPECT_TRUE(strangers.back()->Read().has_challenge());
  }
  ::testing::internal::CaptureStderr();
  RawNode one_more = MakeRaw();
  one_more.ExpectEnd(grpc::StatusCode::RESOURCE_EXHAUSTED, "too many calls");
  EXPECT_THAT(::testing::internal::GetCapturedStderr(),
              HasSubstr("refused: 8 calls that have not joined, 8 of them of its host"));
  const TcpProxy elsewhere(hub_->port(), /*source_host=*/2);
  RawNode node(elsewhere.port(), options_.security.secret);
  node.JoinWholly();
  for (const auto& stranger : strangers) stranger->Cancel();
  EXPECT_EQ(Ask(0, TestMessage::kEcho, "fine"), "fine");
}

TEST_F(ProtocolTest, GarbageOnThePort) {
  StartAll();
  for (const std::string bytes : {"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x02", "\0\0\0\0", ""}) {
    const int socket = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(hub_->port()));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(::connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(::send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
    ::close(socket);
  }
  ExpectGroupGoesOn();
}

// Whose first join waits until the test lets it go on.
class GatedMembers final : public Members {
 public:
  using Members::Members;

  absl::Status OnJoin(const std::shared_ptr<HeadLink>& link, const v1::JoinRequest& join) override {
    if (std::exchange(gated_, true)) return Members::OnJoin(link, join);
    arrived_.set_value();
    go_on_.get_future().wait();
    const absl::Status status = Members::OnJoin(link, join);
    joined_.set_value(status);
    return status;
  }
  void WaitForJoin() { arrived_.get_future().wait(); }
  absl::Status LetJoin() {
    go_on_.set_value();
    return joined_.get_future().get();
  }

 private:
  bool gated_ = false;  // the second join comes after the first has ended
  std::promise<void> arrived_;
  std::promise<void> go_on_;
  std::promise<absl::Status> joined_;
};

class MembersService final : public v1::Cluster::CallbackService {
 public:
  MembersService(Members* members, const JoinChecks* checks) : members_(members), checks_(checks) {}
  grpc::ServerBidiReactor<v1::NodeMessage, v1::HeadMessage>* Join(
      grpc::CallbackServerContext* context) override {
    return members_->BeginLink(context, checks_);
  }

 private:
  Members* const members_;
  const JoinChecks* const checks_;
};

// The call ends, here by silence, between the arrival of its JoinRequest and the decision on it. It
// must not become a member: nobody would take it away, and the node could never join again.
TEST_F(ProtocolTest, ACallThatEndsWhileItJoinsIsNoMember) {
  const JoinChecks checks = {
      .shape = options_.shape, .identity = options_.identity, .secret = options_.security.secret};
  GatedMembers members(options_.shape, std::string(kNonceBytes, 'r'));
  MembersService service(&members, &checks);
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  members.Start(&recorder_);

  RawNode silent(port, options_.security.secret);
  silent.Hello();
  silent.Join();
  members.WaitForJoin();
  members.Look(milliseconds(0), std::chrono::steady_clock::duration::zero());
  EXPECT_EQ(members.LetJoin(), absl::UnavailableError("its call has ended"));
  EXPECT_EQ(members.LinkOf(1), nullptr);
  EXPECT_FALSE(silent.End().ok());

  RawNode again(port, options_.security.secret);
  again.JoinWholly();
  EXPECT_NE(members.LinkOf(1), nullptr);
  again.Up(2);
  EXPECT_EQ(recorder_.Next(Kind::kUp, 2).text, "");
  members.Stop();
  again.Cancel();
  server->Shutdown(std::chrono::system_clock::now());
  server->Wait();
  members.WaitUntilGone();
}

}  // namespace
}  // namespace nibble::comm
