// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/group_address.h"

#include <type_traits>

namespace nibble::comm {
namespace {

constexpr std::string_view kMagic = "nibble-rank\x01";

template <typename Integer>
void PutInteger(Integer value, std::string* bytes) {
  for (size_t i = 0; i < sizeof(Integer); ++i) {
    bytes->push_back(static_cast<char>(static_cast<uint8_t>(value >> (8 * i))));
  }
}

void PutBytes(std::string_view value, std::string* bytes) {
  PutInteger(static_cast<uint32_t>(value.size()), bytes);
  bytes->append(value);
}

template <typename Integer>
bool TakeInteger(std::string_view* bytes, Integer* value) {
  static_assert(std::is_unsigned_v<Integer>);
  if (bytes->size() < sizeof(Integer)) return false;
  *value = 0;
  for (size_t i = 0; i < sizeof(Integer); ++i) {
    *value |= static_cast<Integer>(static_cast<uint8_t>((*bytes)[i])) << (8 * i);
  }
  bytes->remove_prefix(sizeof(Integer));
  return true;
}

bool TakeBytes(std::string_view* bytes, std::string* value) {
  uint32_t size = 0;
  if (!TakeInteger(bytes, &size) || bytes->size() < size) return false;
  *value = bytes->substr(0, size);
  bytes->remove_prefix(size);
  return true;
}

}  // namespace

std::string Serialize(const GroupAddress& address) {
  std::string bytes(kMagic);
  PutInteger(address.rank, &bytes);
  PutInteger(address.size, &bytes);
  PutInteger(address.generation, &bytes);
  PutBytes(address.group_id, &bytes);
  PutBytes(address.network, &bytes);
  return bytes;
}

absl::StatusOr<GroupAddress> ParseGroupAddress(std::string_view bytes) {
  if (bytes.size() > kMaxGroupAddressBytes) {
    return InvalidArgument("a rank's address of {} bytes, the limit is {}", bytes.size(),
                           kMaxGroupAddressBytes);
  }
  if (bytes.substr(0, kMagic.size()) != kMagic) {
    return InvalidArgument("{} bytes that are no rank's address of this version", bytes.size());
  }
  std::string_view rest = bytes.substr(kMagic.size());
  GroupAddress address;
  if (!TakeInteger(&rest, &address.rank) || !TakeInteger(&rest, &address.size) ||
      !TakeInteger(&rest, &address.generation) || !TakeBytes(&rest, &address.group_id) ||
      !TakeBytes(&rest, &address.network) || !rest.empty()) {
    return InvalidArgument("a rank's address of {} bytes does not end where its parts do",
                           bytes.size());
  }
  return address;
}

absl::StatusOr<std::string> CheckGroupAddress(std::string_view bytes, GroupAddress expected) {
  NIBBLE_ASSIGN_OR_RETURN(GroupAddress address, ParseGroupAddress(bytes));
  expected.network = address.network;
  if (address == expected) return std::move(address.network);
  return InvalidArgument(
      "the address given for rank {} of {} in generation {} of group '{}' is of rank {} of {} in "
      "generation {} of group '{}'",
      expected.rank, expected.size, expected.generation, expected.group_id, address.rank,
      address.size, address.generation, address.group_id);
}

std::string JoinAddresses(std::span<const std::string> addresses) {
  std::string bytes;
  for (const std::string& address : addresses) PutBytes(address, &bytes);
  return bytes;
}

absl::StatusOr<std::vector<std::string>> SplitAddresses(std::string_view bytes, size_t count) {
  std::vector<std::string> addresses(count);
  std::string_view rest = bytes;
  for (std::string& address : addresses) {
    if (!TakeBytes(&rest, &address)) {
      return InvalidArgument("{} bytes are no {} addresses", bytes.size(), count);
    }
  }
  if (!rest.empty()) {
    return InvalidArgument("{} bytes are {} too many for {} addresses", bytes.size(), rest.size(),
                           count);
  }
  return addresses;
}

}  // namespace nibble::comm
