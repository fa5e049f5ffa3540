// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/utf8.h"

#include <cstdint>

namespace nibble {
namespace {

struct Decoded {
  size_t length;  // bytes of the character, or of the maximal invalid sequence
  bool valid;
  bool truncated;  // the text ends where more bytes could have completed it
};

// Unicode 15, table 3-7: the range of the second byte depends on the first.
Decoded DecodeOne(std::string_view text) {
  const auto byte = [&](size_t index) { return static_cast<uint8_t>(text[index]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {1, true, false};
  size_t length = 0;
  uint8_t low = 0x80;
  uint8_t high = 0xbf;
  if (lead >= 0xc2 && lead <= 0xdf) {
    length = 2;
  } else if (lead >= 0xe0 && lead <= 0xef) {
    length = 3;
    if (lead == 0xe0) low = 0xa0;
    if (lead == 0xed) high = 0x9f;
  } else if (lead >= 0xf0 && lead <= 0xf4) {
    length = 4;
    if (lead == 0xf0) low = 0x90;
    if (lead == 0xf4) high = 0x8f;
  } else {
    return {1, false, false};
  }
  for (size_t index = 1; index < length; ++index) {
    if (index >= text.size()) return {index, false, true};
    if (byte(index) < low || byte(index) > high) return {index, false, false};
    low = 0x80;
    high = 0xbf;
  }
  return {length, true, false};
}

}  // namespace

bool IsValidUtf8(std::string_view text) {
  while (!text.empty()) {
    const Decoded decoded = DecodeOne(text);
    if (!decoded.valid) return false;
    text.remove_prefix(decoded.length);
  }
  return true;
}

size_t CompleteUtf8Prefix(std::string_view text) {
  // Only the last three bytes can belong to an unfinished character.
  for (size_t back = 1; back <= 3 && back <= text.size(); ++back) {
    const size_t start = text.size() - back;
    if ((static_cast<uint8_t>(text[start]) & 0xc0) == 0x80) continue;
    return DecodeOne(text.substr(start)).truncated ? start : text.size();
  }
  return text.size();
}

std::string ReplaceInvalidUtf8(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  while (!text.empty()) {
    const Decoded decoded = DecodeOne(text);
    if (decoded.valid) {
      result.append(text.substr(0, decoded.length));
    } else {
      result.append("\xef\xbf\xbd");
    }
    text.remove_prefix(decoded.length);
  }
  return result;
}

}  // namespace nibble
