// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/tcp/rank_address.h"

#include <bit>
#include <cstring>

#include "base/fnv1a.h"

namespace nibble::comm {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr uint64_t kMagic = 0x3170637462626e00;  // changes with the layout

struct Fixed {
  uint64_t magic;
  uint64_t checksum;
  uint64_t generation;
  uint64_t nonce;
  uint32_t rank;
  uint32_t size;
  uint16_t port;
  uint16_t group_id_bytes;
  uint16_t host_bytes;
  uint16_t worker_bytes;
};
static_assert(sizeof(Fixed) == 48);
constexpr size_t kChecksummedFrom = offsetof(Fixed, generation);

}  // namespace

uint64_t AddressChecksum(std::string_view bytes) { return Fnv1a(bytes); }

std::string RankAddress::Serialize() const {
  Fixed fixed = {.magic = kMagic,
                 .checksum = 0,
                 .generation = generation,
                 .nonce = nonce,
                 .rank = static_cast<uint32_t>(rank),
                 .size = static_cast<uint32_t>(size),
                 .port = port,
                 .group_id_bytes = static_cast<uint16_t>(group_id.size()),
                 .host_bytes = static_cast<uint16_t>(host.size()),
                 .worker_bytes = static_cast<uint16_t>(worker.size())};
  std::string bytes(reinterpret_cast<const char*>(&fixed), sizeof(fixed));
  bytes += group_id;
  bytes += host;
  bytes += worker;
  fixed.checksum = AddressChecksum(std::string_view(bytes).substr(kChecksummedFrom));
  std::memcpy(bytes.data(), &fixed, sizeof(fixed));
  return bytes;
}

absl::StatusOr<RankAddress> RankAddress::Parse(std::string_view bytes) {
  constexpr size_t kMaxBytes = sizeof(Fixed) + kMaxGroupIdBytes + kMaxHostBytes + kMaxWorkerBytes;
  if (bytes.size() < sizeof(Fixed) || bytes.size() > kMaxBytes) {
    return InvalidArgument("an address of {} bytes, the limits are {} and {}", bytes.size(),
                           sizeof(Fixed), kMaxBytes);
  }
  Fixed fixed;
  std::memcpy(&fixed, bytes.data(), sizeof(fixed));
  if (fixed.magic != kMagic) return InvalidArgument("not an address of this version of nibble");
  if (fixed.checksum != AddressChecksum(bytes.substr(kChecksummedFrom))) {
    return InvalidArgument("a garbled address: its checksum differs");
  }
  if (fixed.size < 1 || fixed.size > kMaxSize || fixed.rank >= fixed.size) {
    return InvalidArgument("an address of rank {} of {}, the limit is {} ranks", fixed.rank,
                           fixed.size, kMaxSize);
  }
  const size_t parts = size_t{fixed.group_id_bytes} + fixed.host_bytes + fixed.worker_bytes;
  if (fixed.group_id_bytes < 1 || fixed.group_id_bytes > kMaxGroupIdBytes || fixed.host_bytes < 1 ||
      fixed.host_bytes > kMaxHostBytes || fixed.worker_bytes < 1 ||
      fixed.worker_bytes > kMaxWorkerBytes || sizeof(fixed) + parts != bytes.size()) {
    return InvalidArgument("an address of {} bytes whose parts have {}, {} and {}", bytes.size(),
                           fixed.group_id_bytes, fixed.host_bytes, fixed.worker_bytes);
  }
  const std::string_view rest = bytes.substr(sizeof(fixed));
  RankAddress address;
  address.generation = fixed.generation;
  address.nonce = fixed.nonce;
  address.rank = static_cast<int>(fixed.rank);
  address.size = static_cast<int>(fixed.size);
  address.port = fixed.port;
  address.group_id = rest.substr(0, fixed.group_id_bytes);
  address.host = rest.substr(fixed.group_id_bytes, fixed.host_bytes);
  address.worker = rest.substr(size_t{fixed.group_id_bytes} + fixed.host_bytes);
  return address;
}

}  // namespace nibble::comm
