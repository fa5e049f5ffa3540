// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/request_log/request_id.h"

#include <algorithm>
#include <random>

#include "fmt/core.h"

namespace nibble::server {

RequestIds::RequestIds() : base_(std::random_device()()) {
  base_ = (base_ << 32) | std::random_device()();
}

std::string RequestIds::Next() { return fmt::format("{:016x}{:016x}", base_, next_.fetch_add(1)); }

std::string RequestIds::Choose(std::string_view given) {
  constexpr size_t kMaxIdBytes = 256;
  const auto is_visible = [](char c) { return c > 0x20 && c < 0x7f; };
  if (given.empty() || given.size() > kMaxIdBytes ||
      !std::all_of(given.begin(), given.end(), is_visible)) {
    return Next();
  }
  return std::string(given);
}

}  // namespace nibble::server
