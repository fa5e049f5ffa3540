// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Who is refused, with which words on both sides, and that the group goes on.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <functional>

#include "grpcpp/grpcpp.h"

#include "comm/cluster/handshake.h"
#include "nibble/v1/cluster.grpc.pb.h"
#include "tests/comm/cluster/certificates.h"
#include "tests/comm/cluster/cluster_fixture.h"

namespace nibble::comm {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

class RefusalTest : public ClusterFixture {
 protected:
  void ExpectGroupGoesOn() {
    for (int rank = 0; rank < hub_->size(); ++rank) {
      EXPECT_EQ(Ask(rank, TestMessage::kEcho, "fine"), "fine");
    }
    EXPECT_TRUE(recorder_.events().empty());
  }
  // What a node that differs in one thing returns, and what the head logs.
  void ExpectRefused(const std::function<void(NodeOptions*)>& change, absl::StatusCode code,
                     const std::string& text) {
    NodeOptions options = NodeOptionsFor(options_, hub_->port());
    change(&options);
    ::testing::internal::CaptureStderr();
    NodeThread node(std::move(options));
    const absl::Status status = node.Wait();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
    const std::string log = ::testing::internal::GetCapturedStderr();
    EXPECT_THAT(log, HasSubstr("refused: " + text));
    ExpectGroupGoesOn();
  }
};

TEST_F(RefusalTest, NodesThatDoNotBelong) {
  options_.shape.num_nodes = 3;
  Listen();
  ASSERT_TRUE(hub_->Start(&recorder_).ok());
  const NodeThread first(NodeOptionsFor(options_, hub_->port(), 1));
  const NodeThread second(NodeOptionsFor(options_, hub_->port(), 2));
  for (int rank = 0; rank < 6; ++rank) ASSERT_EQ(recorder_.Next(Kind::kUp, rank).text, "");
  constexpr auto kUnauthenticated = absl::StatusCode::kUnauthenticated;
  constexpr auto kFailedPrecondition = absl::StatusCode::kFailedPrecondition;
  ExpectRefused([](NodeOptions* node) { node->security.secret = "a secret of other nodes"; },
                kUnauthenticated, "its secret is not the head's (--cluster-secret-file)");
  ExpectRefused([](NodeOptions* node) { node->identity.version = "1.2.4"; }, kFailedPrecondition,
                "its nibble version is '1.2.4', the head's is '1.2.3'");
  ExpectRefused([](NodeOptions* node) { node->identity.model_fingerprint = "model-b"; },
                kFailedPrecondition, "its model fingerprint is 'model-b', the head's is 'model-a'");
  ExpectRefused([](NodeOptions* node) { node->identity.options_fingerprint = "options-b"; },
                kFailedPrecondition,
                "its options fingerprint is 'options-b', the head's is 'options-a'");
  // Its own view of the cluster is consistent; the head's is another one.
  ExpectRefused([](NodeOptions* node) { node->shape.num_nodes = 4; }, kFailedPrecondition,
                "it is one of 4 nodes, the head's cluster has 3");
}

TEST_F(RefusalTest, ShapesAndNumbersThatDoNotBelong) {
  StartAll();
  ExpectRefused([](NodeOptions* node) { node->shape.ranks_per_node = 3; },
                absl::StatusCode::kFailedPrecondition, "it has 3 ranks, the head's nodes have 2");
  ExpectRefused([](NodeOptions* node) { node->shape.num_nodes = 5, node->node = 4; },
                absl::StatusCode::kFailedPrecondition,
                "it is one of 5 nodes, the head's cluster has 2");
  NodeOptions options = NodeOptionsFor(options_, hub_->port(), 2);
  EXPECT_EQ(RunNode(options, std::stop_token()).code(), absl::StatusCode::kInvalidArgument);
  options.node = 0;
  EXPECT_THAT(RunNode(options, std::stop_token()).ToString(),
              HasSubstr("nodes that join are numbered 1 to 1"));
}

// The second one of a number waits; it is taken once the first is gone.
TEST_F(RefusalTest, TheSameNumberTwice) {
  StartAll();
  NodeThread second(NodeOptionsFor(options_, hub_->port()));
  ExpectGroupGoesOn();
  node_.reset();
  for (const int rank : {2, 3}) EXPECT_NE(recorder_.Next(Kind::kDown, rank).text, "");
  for (const int rank : {2, 3}) EXPECT_EQ(recorder_.Next(Kind::kUp, rank).text, "");
  ExpectGroupGoesOn();
}

TEST_F(RefusalTest, HeadsAndNodesWithoutASecret) {
  options_.security.secret = "";
  EXPECT_THAT(ClusterHub::Listen(options_).status().ToString(),
              HasSubstr("openssl rand -hex 32 > FILE"));
  EXPECT_THAT(RunNode(NodeOptionsFor(options_, 1), std::stop_token()).ToString(),
              HasSubstr("--cluster-secret-file"));
  options_.security.secret = "short";
  EXPECT_THAT(ClusterHub::Listen(options_).status().ToString(),
              HasSubstr("secret has 5 bytes: wanted are 16 to 4096"));
}

TEST_F(RefusalTest, AddressesThatCannotBe) {
  options_.address = "0.0.0.0";
  EXPECT_THAT(ClusterHub::Listen(options_).status().ToString(),
              HasSubstr("give the address of one interface"));
  options_.address = "no.such.host.invalid";
  EXPECT_EQ(ClusterHub::Listen(options_).status().code(), absl::StatusCode::kUnavailable);
  options_.address = "127.0.0.1";
  Listen();
  options_.port = hub_->port();
  EXPECT_THAT(ClusterHub::Listen(options_).status().ToString(),
              HasSubstr("cannot take nodes on 127.0.0.1:" + std::to_string(hub_->port())));
}

class TlsTest : public RefusalTest {
 protected:
  ClusterSecurity SecurityOf(const TestAuthority& authority) const {
    const Certificate certificate = authority.Sign();
    return {.tls_ca = authority.cert(), .tls_cert = certificate.cert, .tls_key = certificate.key};
  }
  // A node with these credentials tries and tries, and is never there. It says why.
  void ExpectCannotJoin(const ClusterSecurity& security) {
    ::testing::internal::CaptureStderr();
    NodeOptions options = NodeOptionsFor(options_, hub_->port());
    options.security = security;
    NodeThread node(std::move(options));
    const std::stop_source none;
    EXPECT_EQ(hub_->WaitForNodes(Deadline::After(milliseconds(300)), none.get_token()).code(),
              absl::StatusCode::kDeadlineExceeded);
    node.RequestStop();
    EXPECT_EQ(node.Wait(), absl::OkStatus());
    EXPECT_THAT(::testing::internal::GetCapturedStderr(),
                HasSubstr("(do both sides use TLS, with certificates of one CA, or neither?)"));
  }

  const TestAuthority authority_;
};

TEST_F(TlsTest, CertificatesOfOneAuthorityJoin) {
  options_.security = SecurityOf(authority_);
  Listen();
  const TestAuthority other;
  ExpectCannotJoin(SecurityOf(other));
  ExpectCannotJoin({.secret = "a secret of all nodes"});  // plaintext
  NodeOptions options = NodeOptionsFor(options_, hub_->port());
  options.security = SecurityOf(authority_);
  ASSERT_TRUE(hub_->Start(&recorder_).ok());
  const NodeThread node(std::move(options));
  for (int rank = 0; rank < 4; ++rank) ASSERT_EQ(recorder_.Next(Kind::kUp, rank).text, "");
  ExpectGroupGoesOn();
  ExpectRefused(
      [](NodeOptions* other_node) { other_node->security.secret = "a secret of one node"; },
      absl::StatusCode::kUnauthenticated, "it has a secret and the head has none");
}

TEST_F(TlsTest, ASecretCountsWithTlsToo) {
  options_.security = SecurityOf(authority_);
  options_.security.secret = "a secret of all nodes";
  StartAll();
  ExpectRefused([](NodeOptions* node) { node->security.secret = "a secret of other nodes"; },
                absl::StatusCode::kUnauthenticated, "its secret is not the head's");
}

TEST_F(TlsTest, TlsToPlaintextCannotJoin) {
  Listen();
  ExpectCannotJoin(SecurityOf(authority_));
}

TEST_F(TlsTest, CertificatesThatAreNone) {
  const ClusterSecurity good = SecurityOf(authority_);
  const auto error = [&](const std::function<void(ClusterSecurity*)>& change) {
    options_.security = good;
    change(&options_.security);
    return ClusterHub::Listen(options_).status().ToString();
  };
  EXPECT_THAT(error([](auto* security) { security->tls_ca = "none"; }),
              HasSubstr("the CA certificate of the cluster is no PEM certificate"));
  EXPECT_THAT(error([](auto* security) { security->tls_cert = "none"; }),
              HasSubstr("the certificate of this node is no PEM certificate"));
  EXPECT_THAT(error([](auto* security) { security->tls_key = "none"; }),
              HasSubstr("the key of this node is no PEM key"));
  EXPECT_THAT(error([](auto* security) { security->tls_key = ""; }), HasSubstr("one is missing"));
  EXPECT_THAT(error([&](auto* security) { security->tls_key = authority_.Sign().key; }),
              HasSubstr("the key of this node is not the one of its certificate"));
}

// A node that speaks as the test says.
class RawNode {
 public:
  RawNode(int port, std::string secret)
      : secret_(std::move(secret)),
        stub_(v1::Cluster::NewStub(grpc::CreateChannel("127.0.0.1:" + std::to_string(port),
                                                       grpc::InsecureChannelCredentials()))),
        stream_(stub_->Join(&context_)) {}

  void Write(const v1::NodeMessage& message) { stream_->Write(message); }
  void Hello(uint32_t protocol = kClusterProtocol, size_t nonce_bytes = kNonceBytes) {
    nonces_.node = std::string(nonce_bytes, 'n');
    v1::NodeMessage message;
    message.mutable_hello()->set_protocol(protocol);
    message.mutable_hello()->set_nonce(nonces_.node);
    Write(message);
  }
  v1::HeadMessage Read() {
    v1::HeadMessage message;
    stream_->Read(&message);
    return message;
  }
  // As node 1 of the fixture's cluster, but for what `change` says. Returns the proof, `proof` if
  // that is given.
  std::string Join(const std::function<void(v1::JoinRequest*)>& change = {},
                   const std::string& proof = "") {
    nonces_.head = Read().challenge().nonce();
    v1::NodeMessage message;
    v1::JoinRequest* join = message.mutable_join();
    join->set_node(1);
    join->set_num_nodes(2);
    join->set_ranks_per_node(2);
    join->set_version("1.2.3");
    join->set_model_fingerprint("model-a");
    join->set_options_fingerprint("options-a");
    join->set_bind_address("127.0.0.1");
    if (change) change(join);
    join->set_proof(proof.empty() ? ProofOf(Side::kNode, secret_, nonces_, join->node()) : proof);
    Write(message);
    return join->proof();
  }
  // Joins, and reads until the head wants ranks.
  void JoinWholly() {
    Hello();
    Join();
    const v1::HeadMessage welcome = Read();
    EXPECT_TRUE(CheckWelcome(welcome.welcome(), nonces_, secret_, 1).ok());
    EXPECT_TRUE(Read().has_start_ranks());
  }
  void Up(uint32_t rank) {
    v1::NodeMessage message;
    message.mutable_rank_up()->set_rank(rank);
    Write(message);
  }
  void FrameOf(uint32_t rank, const std::string& payload, uint64_t remaining = 0) {
    v1::NodeMessage message;
    message.mutable_frame()->set_rank(rank);
    message.mutable_frame()->set_payload(payload);
    message.mutable_frame()->set_remaining(remaining);
    Write(message);
  }
  void Cancel() { context_.TryCancel(); }
  // The status with which the head ends the call.
  grpc::Status End() {
    v1::HeadMessage message;
    while (stream_->Read(&message)) {
    }
    return stream_->Finish();
  }
  void ExpectEnd(grpc::StatusCode code, const std::string& text) {
    const grpc::Status status = End();
    EXPECT_EQ(status.error_code(), code) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(text));
  }

 private:
  const std::string secret_;
  Nonces nonces_;
  grpc::ClientContext context_;
  std::unique_ptr<v1::Cluster::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::NodeMessage, v1::HeadMessage>> stream_;
};

class ProtocolTest : public RefusalTest {
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
  for (const char* address : {"", "0.0.0.0", "example.com", "127.0.0.1; rm"}) {
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
  options_.heartbeat = {.interval = milliseconds(50), .timeout = milliseconds(300)};
  Start();
  RawNode stranger = MakeRaw();
  RawNode member = MakeRaw();
  member.JoinWholly();
  member.Up(3);
  EXPECT_THAT(recorder_.Next(Kind::kDown, 3).text, HasSubstr("nothing was heard from it for 300"));
  EXPECT_FALSE(stranger.End().ok());
  EXPECT_FALSE(member.End().ok());
}

TEST_F(ProtocolTest, StrangersAreLimited) {
  Start();
  std::vector<std::unique_ptr<RawNode>> strangers;
  for (int i = 0; i < 64; ++i) {
    strangers.push_back(std::make_unique<RawNode>(hub_->port(), ""));
    strangers.back()->Hello();
    EXPECT_TRUE(strangers.back()->Read().has_challenge());
  }
  RawNode one_more = MakeRaw();
  one_more.ExpectEnd(grpc::StatusCode::RESOURCE_EXHAUSTED, "too many calls");
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

}  // namespace
}  // namespace nibble::comm
