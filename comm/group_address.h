// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a rank tells the others before they connect. Bytes: "nibble-rank" and a version byte, then
// rank, size (uint32 each), generation (uint64), group id and network address (uint32 length and
// bytes each); little endian.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace nibble::comm {

struct GroupAddress {
  uint32_t rank = 0;
  uint32_t size = 0;
  uint64_t generation = 0;
  std::string group_id;
  std::string network;  // the network transport's own; empty when there is none

  friend bool operator==(const GroupAddress&, const GroupAddress&) = default;
};

inline constexpr size_t kMaxGroupAddressBytes = 64 << 10;

std::string Serialize(const GroupAddress& address);
// INVALID_ARGUMENT for bytes that are none, or too many.
absl::StatusOr<GroupAddress> ParseGroupAddress(std::string_view bytes);
// The network address of an address that must be `expected` but for it. INVALID_ARGUMENT naming
// what differs.
absl::StatusOr<std::string> CheckGroupAddress(std::string_view bytes, GroupAddress expected);

// Several addresses of one rank as one, and back: `count` of them, or INVALID_ARGUMENT.
std::string JoinAddresses(std::span<const std::string> addresses);
absl::StatusOr<std::vector<std::string>> SplitAddresses(std::string_view bytes, size_t count);

}  // namespace nibble::comm
