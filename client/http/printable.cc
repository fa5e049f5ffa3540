// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/http/printable.h"

#include "base/utf8.h"

namespace nibble::client {
namespace {

// Bytes of the control character that valid UTF-8 begins with; 0: it begins with another one.
size_t ControlBytes(std::string_view text) {
  const auto at = [&](size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U;
  };
  if (at(0) < 0x20 || at(0) == 0x7f) return 1;
  if (at(0) == 0xc2 && at(1) < 0xa0) return 2;  // U+0080 to U+009F
  if (at(0) != 0xe2) return 0;
  if (at(1) == 0x80 && at(2) >= 0xa8 && at(2) <= 0xae) return 3;  // U+2028 to U+202E
  if (at(1) == 0x81 && at(2) >= 0xa6 && at(2) <= 0xa9) return 3;  // U+2066 to U+2069
  return 0;
}

}  // namespace

std::string PrintableText(std::string_view text, bool keep_lines) {
  const std::string valid = ReplaceInvalidUtf8(text);
  std::string result;
  result.reserve(valid.size());
  for (size_t i = 0; i < valid.size();) {
    const size_t control = ControlBytes(std::string_view(valid).substr(i));
    const bool kept = control == 0 || (keep_lines && (valid[i] == '\n' || valid[i] == '\t'));
    result.push_back(kept ? valid[i] : ' ');
    i += kept ? 1 : control;
  }
  return result;
}

std::string PrintableMessage(std::string_view text, size_t max_bytes) {
  if (text.size() <= max_bytes) return PrintableText(text);
  text = text.substr(0, max_bytes);
  return PrintableText(text.substr(0, CompleteUtf8Prefix(text))) + "...";
}

}  // namespace nibble::client
