// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What head and node check of each other before a node is a member. Pure functions of messages.
//
// Both prove that they know the secret without sending it: HMAC-SHA256 over fresh nonces of both
// sides. The node proves first, so that whoever merely connects to the head's port gets nothing to
// try secrets against.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/status.h"
#include "comm/cluster/cluster_options.h"
#include "nibble/v1/cluster.pb.h"

namespace nibble::comm {

inline constexpr uint32_t kClusterProtocol = 1;
inline constexpr size_t kNonceBytes = 32;
inline constexpr size_t kMaxNameBytes = 256;      // of a version, fingerprint, address
inline constexpr size_t kMaxOptionsBytes = 1024;  // of the options' fingerprint

// UNAVAILABLE when the system gives no random bytes.
absl::StatusOr<std::string> MakeNonce();

struct Nonces {
  std::string node;
  std::string head;
};

enum class Side { kNode, kHead };
// Empty for an empty secret.
std::string ProofOf(Side side, const std::string& secret, const Nonces& nonces, uint32_t node);

// The head's checks. UNAUTHENTICATED, FAILED_PRECONDITION and INVALID_ARGUMENT as cluster.proto
// says, with words for the node's operator.
absl::Status CheckHello(const v1::Hello& hello);
absl::Status CheckJoin(const v1::JoinRequest& join, const Nonces& nonces, const ClusterShape& shape,
                       const ClusterIdentity& identity, const std::string& secret);

// The node's.
absl::Status CheckChallenge(const v1::Challenge& challenge);
absl::Status CheckWelcome(const v1::Welcome& welcome, const Nonces& nonces,
                          const std::string& secret, uint32_t node);

}  // namespace nibble::comm
