// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a rank tells the others so that they can connect to it. Layout, little endian:
//
//   magic u64 | checksum u64 of all that follows | generation u64 | nonce u64 | rank u32 | size u32
//   | port u16 | lengths u16 x 3 | group id | host | UCX's worker address
//
// The checksum guards UCX, whose own parser trusts its input, against bytes that were garbled; it
// is no protection against somebody who forges an address: whoever carries the addresses must be
// trusted or authenticated.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"

namespace nibble::comm {

struct RankAddress {
  static constexpr size_t kMaxGroupIdBytes = 128;
  static constexpr size_t kMaxHostBytes = 64;
  static constexpr size_t kMaxWorkerBytes = 4096;
  static constexpr int kMaxSize = 1024;

  uint64_t generation = 0;
  uint64_t nonce = 0;  // random: tells this rank's messages from those of anybody else
  int rank = 0;
  int size = 1;
  uint16_t port = 0;
  std::string group_id;
  std::string host;    // numeric
  std::string worker;  // opaque

  std::string Serialize() const;
  // INVALID_ARGUMENT saying what is wrong.
  static absl::StatusOr<RankAddress> Parse(std::string_view bytes);

  friend bool operator==(const RankAddress&, const RankAddress&) = default;
};

// Of `bytes` [any], as the second word of an address holds it.
uint64_t AddressChecksum(std::string_view bytes);

}  // namespace nibble::comm
