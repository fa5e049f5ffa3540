// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A hash that tells things apart that were changed or garbled, not forged.
#pragma once

#include <cstdint>
#include <string_view>

namespace nibble {

// FNV-1a of 64 bits. To go on where another call ended, hand its result on.
constexpr uint64_t Fnv1a(std::string_view bytes, uint64_t hash = 0xcbf29ce484222325) {
  for (const char byte : bytes) hash = (hash ^ static_cast<uint8_t>(byte)) * 0x100000001b3;
  return hash;
}

}  // namespace nibble
