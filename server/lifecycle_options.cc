// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/lifecycle_options.h"

#include <string_view>

#include "fmt/format.h"

namespace nibble::server {

void LifecycleOptions::Validate(std::vector<std::string>* violations) const {
  const auto check = [violations](std::string_view option, int value, int low, int high) {
    if (value >= low && value <= high) return;
    violations->push_back(fmt::format("{} is {}, want {} to {}", option, value, low, high));
  };
  check("--step-timeout", step_timeout_seconds, 1, 86400);
  check("--health-port", health_port, -1, 65535);
  check("--drain-delay", drain_delay_seconds, 0, 3600);
  check("--shutdown-timeout", shutdown_timeout_seconds, 0, 86400);
}

}  // namespace nibble::server
