// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the head and the nodes of a cluster have in common.
#pragma once

#include <chrono>
#include <string>

#include "base/status.h"

namespace nibble::comm {

// Ranks are spread evenly: node n has ranks [n * ranks_per_node, (n + 1) * ranks_per_node).
struct ClusterShape {
  int num_nodes = 2;       // 2..256, the head counted
  int ranks_per_node = 1;  // 1..256
};

// All must agree on these; a node that differs is refused by name. Up to 256 bytes, options 1024.
struct ClusterIdentity {
  std::string version;            // of nibble
  std::string model_fingerprint;  // of the files that are loaded
  // Of everything else that ranks must agree on: "name=value, name=value". A refusal names what
  // differs; values of 32 bytes and more are hashes, of which it says no more than that.
  std::string options_fingerprint;
};

// One of both or both; at least one when there is more than one node.
struct ClusterSecurity {
  std::string secret;  // 16..4096 bytes, the same everywhere; never travels
  // Mutual TLS: PEM texts, all three or none. The certificate must hold for the address by which
  // nodes reach the head, or for tls_server_name if that is given (nodes only).
  std::string tls_ca;
  std::string tls_cert;
  std::string tls_key;
  std::string tls_server_name;

  bool has_secret() const { return !secret.empty(); }
  bool has_tls() const { return !tls_ca.empty(); }
};

struct HeartbeatOptions {
  std::chrono::milliseconds interval{500};
  std::chrono::milliseconds timeout{5'000};  // silence after which a peer counts as lost
};

// INVALID_ARGUMENT naming all violations; what is missing says how to give it.
absl::Status Validate(const ClusterShape& shape, const ClusterIdentity& identity,
                      const ClusterSecurity& security, const HeartbeatOptions& heartbeat);

// This host's numeric address on the way to `host` (a name or address): what its ranks bind.
// UNAVAILABLE when there is no way.
absl::StatusOr<std::string> LocalAddressTowards(const std::string& host);

}  // namespace nibble::comm
