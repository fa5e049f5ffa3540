// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/cluster/handshake.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include "fmt/ranges.h"

#include "base/check.h"
#include "comm/cluster/addresses.h"

namespace nibble::comm {
namespace {

constexpr size_t kProofBytes = 32;

absl::Status Unauthenticated(std::string_view text) {
  return absl::UnauthenticatedError(absl::string_view(text.data(), text.size()));
}
absl::Status FailedPrecondition(std::string_view text) {
  return absl::FailedPreconditionError(absl::string_view(text.data(), text.size()));
}

bool SameBytes(const std::string& a, const std::string& b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

absl::Status CheckProtocol(uint32_t protocol, std::string_view whose) {
  if (protocol == kClusterProtocol) return absl::OkStatus();
  return FailedPrecondition(
      fmt::format("{} speaks cluster protocol {}, and {} is wanted: run the same nibble version "
                  "everywhere",
                  whose, protocol, kClusterProtocol));
}

absl::Status CheckNonce(const std::string& nonce) {
  if (nonce.size() == kNonceBytes) return absl::OkStatus();
  return InvalidArgument("a nonce of {} bytes came, wanted are {}", nonce.size(), kNonceBytes);
}

// "its model (fingerprint ab12) is not the head's (cd34)"
absl::Status CheckSame(std::string_view what, const std::string& theirs, const std::string& ours) {
  if (theirs == ours) return absl::OkStatus();
  return FailedPrecondition(fmt::format("its {} is '{}', the head's is '{}'", what, theirs, ours));
}

using Options = std::vector<std::pair<std::string_view, std::string_view>>;

Options SplitOptions(std::string_view text) {
  constexpr std::string_view kSeparator = ", ";
  Options options;
  while (!text.empty()) {
    const size_t end = std::min(text.find(kSeparator), text.size());
    const std::string_view part = text.substr(0, end);
    const size_t equals = std::min(part.find('='), part.size());
    options.emplace_back(part.substr(0, equals), part.substr(std::min(equals + 1, part.size())));
    text.remove_prefix(std::min(end + kSeparator.size(), text.size()));
  }
  return options;
}

// Empty for two that are the same.
std::string Difference(std::string_view name, std::string_view theirs, std::string_view ours) {
  constexpr size_t kHashBytes = 32;
  if (theirs == ours) return "";
  if (theirs.size() >= kHashBytes && ours.size() >= kHashBytes) {
    return fmt::format("{} has another content", name);
  }
  const auto shown = [](std::string_view value) {
    return value.size() >= kHashBytes ? "given" : value;
  };
  return fmt::format("{} is {} (node 0: {})", name, shown(theirs), shown(ours));
}

// "its options are not node 0's: --dtype is float32 (node 0: auto)"
absl::Status CheckOptions(const std::string& theirs, const std::string& ours) {
  if (theirs == ours) return absl::OkStatus();
  const Options a = SplitOptions(theirs);
  const Options b = SplitOptions(ours);
  std::vector<std::string> differences;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    if (a[i].first != b[i].first) break;
    std::string difference = Difference(a[i].first, a[i].second, b[i].second);
    if (!difference.empty()) differences.push_back(std::move(difference));
  }
  // Another list, which one version of nibble does not make.
  if (differences.empty()) differences.push_back(fmt::format("'{}' (node 0: '{}')", theirs, ours));
  return FailedPrecondition(
      fmt::format("its options are not node 0's: {}", fmt::join(differences, "; ")));
}

absl::Status CheckProof(const v1::JoinRequest& join, const Nonces& nonces,
                        const std::string& secret) {
  if (secret.empty() && join.proof().empty()) return absl::OkStatus();
  if (secret.empty()) return Unauthenticated("it has a secret and the head has none");
  if (join.proof().empty()) {
    return Unauthenticated(
        "it has no secret and the head has one: give it by "
        "--cluster-secret-file");
  }
  if (SameBytes(join.proof(), ProofOf(Side::kNode, secret, nonces, join.node()))) {
    return absl::OkStatus();
  }
  return Unauthenticated("its secret is not the head's (--cluster-secret-file)");
}

}  // namespace

absl::StatusOr<std::string> MakeNonce() {
  std::string nonce(kNonceBytes, '\0');
  if (RAND_bytes(reinterpret_cast<unsigned char*>(nonce.data()), static_cast<int>(kNonceBytes)) !=
      1) {
    return Unavailable("the system gives no random bytes");
  }
  return nonce;
}

std::string ProofOf(Side side, const std::string& secret, const Nonces& nonces, uint32_t node) {
  if (secret.empty()) return "";
  // All parts have fixed sizes, so no two lists of parts give the same bytes.
  std::string text = side == Side::kNode ? "nibble cluster node" : "nibble cluster head";
  text += nonces.node;
  text += nonces.head;
  for (int shift = 0; shift < 32; shift += 8) text += static_cast<char>(node >> shift);
  std::string proof(kProofBytes, '\0');
  unsigned int num_bytes = 0;
  const unsigned char* made = HMAC(EVP_sha256(), secret.data(), static_cast<int>(secret.size()),
                                   reinterpret_cast<const unsigned char*>(text.data()), text.size(),
                                   reinterpret_cast<unsigned char*>(proof.data()), &num_bytes);
  NIBBLE_CHECK(made != nullptr && num_bytes == kProofBytes);
  return proof;
}

absl::Status CheckHello(const v1::Hello& hello) {
  NIBBLE_RETURN_IF_ERROR(CheckProtocol(hello.protocol(), "it"));
  return CheckNonce(hello.nonce());
}

absl::Status CheckJoin(const v1::JoinRequest& join, const Nonces& nonces, const ClusterShape& shape,
                       const ClusterIdentity& identity, const std::string& secret) {
  // The secret first: others learn nothing about the cluster.
  NIBBLE_RETURN_IF_ERROR(CheckProof(join, nonces, secret));
  for (const auto& [text, limit] : {std::pair(&join.version(), kMaxNameBytes),
                                    std::pair(&join.model_fingerprint(), kMaxNameBytes),
                                    std::pair(&join.options_fingerprint(), kMaxOptionsBytes),
                                    std::pair(&join.bind_address(), kMaxNameBytes)}) {
    if (text->size() > limit) {
      return InvalidArgument("a text of {} bytes came, the limit is {}", text->size(), limit);
    }
  }
  NIBBLE_RETURN_IF_ERROR(CheckSame("nibble version", join.version(), identity.version));
  if (join.num_nodes() != static_cast<uint32_t>(shape.num_nodes)) {
    return FailedPrecondition(fmt::format("it is one of {} nodes, the head's cluster has {}",
                                          join.num_nodes(), shape.num_nodes));
  }
  if (join.ranks_per_node() != static_cast<uint32_t>(shape.ranks_per_node)) {
    return FailedPrecondition(fmt::format("it has {} ranks, the head's nodes have {}",
                                          join.ranks_per_node(), shape.ranks_per_node));
  }
  if (join.node() == 0 || join.node() >= static_cast<uint32_t>(shape.num_nodes)) {
    return InvalidArgument("its number is {}: nodes that join are numbered 1 to {}", join.node(),
                           shape.num_nodes - 1);
  }
  NIBBLE_RETURN_IF_ERROR(
      CheckSame("model fingerprint", join.model_fingerprint(), identity.model_fingerprint));
  NIBBLE_RETURN_IF_ERROR(CheckOptions(join.options_fingerprint(), identity.options_fingerprint));
  if (!IsNumeric(join.bind_address()) || IsEveryInterface(join.bind_address())) {
    return InvalidArgument("its ranks bind '{}', which is no address of an interface",
                           join.bind_address());
  }
  return absl::OkStatus();
}

absl::Status CheckChallenge(const v1::Challenge& challenge) {
  NIBBLE_RETURN_IF_ERROR(CheckProtocol(challenge.protocol(), "the head"));
  return CheckNonce(challenge.nonce());
}

absl::Status CheckWelcome(const v1::Welcome& welcome, const Nonces& nonces,
                          const std::string& secret, uint32_t node) {
  NIBBLE_RETURN_IF_ERROR(CheckNonce(welcome.run_id()));
  if (!SameBytes(welcome.proof(), ProofOf(Side::kHead, secret, nonces, node))) {
    return Unauthenticated("the head does not know the secret: it is somebody else");
  }
  return absl::OkStatus();
}

}  // namespace nibble::comm
