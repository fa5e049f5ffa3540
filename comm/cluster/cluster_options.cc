// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/cluster/cluster_options.h"

#include <vector>

#include "fmt/ranges.h"

#include "comm/cluster/handshake.h"

namespace nibble::comm {
namespace {

constexpr int kMaxNodes = 256;
constexpr int kMaxRanksPerNode = 256;
constexpr size_t kMinSecretBytes = 16;
constexpr size_t kMaxSecretBytes = 4096;
constexpr std::chrono::milliseconds kMinInterval{10};
constexpr std::chrono::milliseconds kMaxTimeout{3'600'000};

void CheckSecurity(const ClusterSecurity& security, std::vector<std::string>* errors) {
  if (!security.has_secret() && !security.has_tls()) {
    errors->push_back(
        "hosts that work together need a secret or TLS: write one with `openssl rand -hex 32 > "
        "FILE` "
        "and give it to every node by --cluster-secret-file, or give certificates by "
        "--cluster-tls-ca, --cluster-tls-cert and --cluster-tls-key");
  }
  if (security.has_secret() &&
      (security.secret.size() < kMinSecretBytes || security.secret.size() > kMaxSecretBytes)) {
    errors->push_back(fmt::format("the cluster's secret has {} bytes: wanted are {} to {}",
                                  security.secret.size(), kMinSecretBytes, kMaxSecretBytes));
  }
  const bool all =
      !security.tls_ca.empty() && !security.tls_cert.empty() && !security.tls_key.empty();
  const bool none =
      security.tls_ca.empty() && security.tls_cert.empty() && security.tls_key.empty();
  if (!all && !none) {
    errors->push_back("TLS between nodes needs a CA, a certificate and its key: one is missing");
  }
}

}  // namespace

absl::Status Validate(const ClusterShape& shape, const ClusterIdentity& identity,
                      const ClusterSecurity& security, const HeartbeatOptions& heartbeat) {
  std::vector<std::string> errors;
  if (shape.num_nodes < 2 || shape.num_nodes > kMaxNodes) {
    errors.push_back(
        fmt::format("a cluster of {} nodes: wanted are 2 to {}", shape.num_nodes, kMaxNodes));
  }
  if (shape.ranks_per_node < 1 || shape.ranks_per_node > kMaxRanksPerNode) {
    errors.push_back(fmt::format("{} ranks on a node: wanted are 1 to {}", shape.ranks_per_node,
                                 kMaxRanksPerNode));
  }
  for (const auto& [text, limit] : {std::pair(&identity.version, kMaxNameBytes),
                                    std::pair(&identity.model_fingerprint, kMaxNameBytes),
                                    std::pair(&identity.options_fingerprint, kMaxOptionsBytes)}) {
    if (text->size() > limit) {
      errors.push_back(fmt::format("a fingerprint or version of {} bytes, the limit is {}",
                                   text->size(), limit));
    }
  }
  CheckSecurity(security, &errors);
  if (heartbeat.interval < kMinInterval || heartbeat.timeout < 2 * heartbeat.interval ||
      heartbeat.timeout > kMaxTimeout) {
    errors.push_back(fmt::format(
        "heartbeats every {} ms with a timeout of {} ms: wanted are {} ms or more, and a timeout "
        "of at least two and at most {} ms",
        heartbeat.interval.count(), heartbeat.timeout.count(), kMinInterval.count(),
        kMaxTimeout.count()));
  }
  if (errors.empty()) return absl::OkStatus();
  return InvalidArgument("{}", fmt::join(errors, "; "));
}

}  // namespace nibble::comm
