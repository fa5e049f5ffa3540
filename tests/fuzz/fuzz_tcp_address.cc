// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Any bytes as a rank's address, as they are and with a checksum that fits: an error, or an address
// whose bytes are these.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "comm/tcp/rank_address.h"

namespace {

void Try(const std::string& bytes) {
  const auto address = nibble::comm::RankAddress::Parse(bytes);
  if (address.ok() && address->Serialize() != bytes) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string bytes(reinterpret_cast<const char*>(data), size);
  Try(bytes);
  if (size >= 16) {
    const uint64_t checksum = nibble::comm::AddressChecksum(std::string_view(bytes).substr(16));
    std::memcpy(bytes.data() + 8, &checksum, sizeof(checksum));
    Try(bytes);
  }
  return 0;
}
