// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// How a server tells probes of itself, and how it ends: a part of server/config.h.
#pragma once

#include <string>
#include <vector>

namespace nibble::server {

struct LifecycleOptions {
  int step_timeout_seconds = 60;  // a step that takes longer has stalled
  int health_port = -1;           // of a plain-HTTP listener for probes; 0: any free port, -1: none
  // After the first signal: how long requests are still taken while readiness says no, then how
  // long answers in progress may take.
  int drain_delay_seconds = 0;
  int shutdown_timeout_seconds = 60;

  void Validate(std::vector<std::string>* violations) const;
};

}  // namespace nibble::server
