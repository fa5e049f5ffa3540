// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/cluster/handshake.h"

#include "gtest/gtest.h"

namespace nibble::comm {
namespace {

TEST(HandshakeTest, AProofIsOfOneSideNoncesNodeAndSecret) {
  const Nonces nonces{.node = std::string(kNonceBytes, 'n'), .head = std::string(kNonceBytes, 'h')};
  const std::string proof = ProofOf(Side::kNode, "a secret of all nodes", nonces, 1);
  EXPECT_EQ(proof.size(), 32U);
  EXPECT_EQ(proof, ProofOf(Side::kNode, "a secret of all nodes", nonces, 1));
  EXPECT_NE(proof, ProofOf(Side::kHead, "a secret of all nodes", nonces, 1));
  EXPECT_NE(proof, ProofOf(Side::kNode, "a secret of all nodeS", nonces, 1));
  EXPECT_NE(proof, ProofOf(Side::kNode, "a secret of all nodes", nonces, 2));
  const Nonces swapped{.node = nonces.head, .head = nonces.node};
  EXPECT_NE(proof, ProofOf(Side::kNode, "a secret of all nodes", swapped, 1));
  EXPECT_EQ(ProofOf(Side::kNode, "", nonces, 1), "");
}

// Made with `openssl dgst -sha256 -hmac`.
TEST(HandshakeTest, AProofIsHmacSha256) {
  const Nonces nonces{.node = std::string(kNonceBytes, 'n'), .head = std::string(kNonceBytes, 'h')};
  std::string hex;
  for (const char byte : ProofOf(Side::kNode, "a secret of all nodes", nonces, 0x6c6b6a69)) {
    hex += fmt::format("{:02x}", static_cast<unsigned char>(byte));
  }
  EXPECT_EQ(hex, "f67db29d29d43139723c035952d4029b745715c65eac3bdcac2313556b960734");
}

TEST(HandshakeTest, NoncesDiffer) {
  const auto a = MakeNonce();
  const auto b = MakeNonce();
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(a->size(), kNonceBytes);
  EXPECT_NE(*a, *b);
}

TEST(HandshakeTest, ANodeChecksItsHead) {
  v1::Challenge challenge;
  challenge.set_protocol(kClusterProtocol);
  challenge.set_nonce(std::string(kNonceBytes, 'h'));
  EXPECT_TRUE(CheckChallenge(challenge).ok());
  challenge.set_protocol(kClusterProtocol + 1);
  EXPECT_EQ(CheckChallenge(challenge).code(), absl::StatusCode::kFailedPrecondition);
  challenge.set_protocol(kClusterProtocol);
  challenge.set_nonce("short");
  EXPECT_EQ(CheckChallenge(challenge).code(), absl::StatusCode::kInvalidArgument);

  const Nonces nonces{.node = std::string(kNonceBytes, 'n'), .head = std::string(kNonceBytes, 'h')};
  v1::Welcome welcome;
  welcome.set_run_id(std::string(kNonceBytes, 'r'));
  EXPECT_EQ(CheckWelcome(welcome, nonces, "secret", 1).code(), absl::StatusCode::kUnauthenticated);
  // What the node sent itself, sent back.
  welcome.set_proof(ProofOf(Side::kNode, "secret", nonces, 1));
  EXPECT_EQ(CheckWelcome(welcome, nonces, "secret", 1).code(), absl::StatusCode::kUnauthenticated);
  welcome.set_proof(ProofOf(Side::kHead, "secret", nonces, 1));
  EXPECT_TRUE(CheckWelcome(welcome, nonces, "secret", 1).ok());
  welcome.set_run_id("");
  EXPECT_FALSE(CheckWelcome(welcome, nonces, "secret", 1).ok());
}

}  // namespace
}  // namespace nibble::comm
