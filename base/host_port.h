// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#pragma once

#include <string>
#include <string_view>

#include "fmt/core.h"

namespace nibble {

// "10.0.0.1:29500", "[::1]:29500": as gRPC reads it, and people.
inline std::string HostAndPort(std::string_view host, int port) {
  const bool is_ipv6 = host.find(':') != std::string_view::npos;
  return fmt::format("{}{}{}:{}", is_ipv6 ? "[" : "", host, is_ipv6 ? "]" : "", port);
}

}  // namespace nibble
