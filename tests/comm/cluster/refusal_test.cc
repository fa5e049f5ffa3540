// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Who is refused, with which words on both sides, and that the group goes on.

#include <functional>

#include "tests/comm/cluster/certificates.h"
#include "tests/comm/cluster/cluster_fixture.h"

namespace nibble::comm {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

class RefusalTest : public ClusterFixture {
 protected:
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
                "its options are not node 0's: 'options-b' (node 0: 'options-a')");
  // Its own view of the cluster is consistent; the head's is another one.
  ExpectRefused([](NodeOptions* node) { node->shape.num_nodes = 4; }, kFailedPrecondition,
                "it is one of 4 nodes, the head's cluster has 3");
}

TEST_F(RefusalTest, OptionsByName) {
  const std::string hash(64, 'a');
  options_.identity.options_fingerprint = "--dtype=auto, --check=on, --load=" + hash + ", isa=x";
  StartAll();
  const auto expect = [this](const std::string& options, const std::string& text) {
    ExpectRefused([&](NodeOptions* node) { node->identity.options_fingerprint = options; },
                  absl::StatusCode::kFailedPrecondition, "its options are not node 0's: " + text);
  };
  expect("--dtype=auto, --check=off, --load=" + hash + ", isa=y",
         "--check is off (node 0: on); isa is y (node 0: x)");
  expect("--dtype=auto, --check=on, --load=" + std::string(64, 'b') + ", isa=x",
         "--load has another content");
  expect("--dtype=auto, --check=on, --load=none, isa=x", "--load is none (node 0: given)");
  expect("", "'' (node 0: '" + options_.identity.options_fingerprint + "')");
  expect("--dtype, --check=on, --load=" + hash + ", isa=x", "--dtype is  (node 0: auto)");
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
  // A node with these credentials tries and tries, and is never there. It says why, if it is given
  // the time for a first try.
  void ExpectCannotJoin(const ClusterSecurity& security,
                        const std::string& hint =
                            "(do both sides use TLS, with certificates of one CA, or neither?") {
    std::string said;
    for (int tries = 1; tries <= 6 && said.find(hint) == std::string::npos; ++tries) {
      ::testing::internal::CaptureStderr();
      NodeOptions options = NodeOptionsFor(options_, hub_->port());
      options.security = security;
      NodeThread node(std::move(options));
      const std::stop_source none;
      const auto patience = milliseconds(300) * tries * tries;
      EXPECT_EQ(hub_->WaitForNodes(Deadline::After(patience), none.get_token()).code(),
                absl::StatusCode::kDeadlineExceeded);
      node.RequestStop();
      EXPECT_EQ(node.Wait(), absl::OkStatus());
      said = ::testing::internal::GetCapturedStderr();
    }
    EXPECT_THAT(said, HasSubstr(hint));
  }

  const TestAuthority authority_;
};

TEST_F(TlsTest, CertificatesOfOneAuthorityJoin) {
  options_.security = SecurityOf(authority_);
  Listen();
  const TestAuthority other;
  ExpectCannotJoin(SecurityOf(other));
  ExpectCannotJoin({.secret = "a secret of all nodes"});  // plaintext
  ClusterSecurity named = SecurityOf(authority_);
  named.tls_server_name = "node0.cluster";  // for which no certificate here holds
  ExpectCannotJoin(named, "that node 0's certificate holds by --cluster-tls-server-name");
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

}  // namespace
}  // namespace nibble::comm
