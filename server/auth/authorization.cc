// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/auth/authorization.h"

#include <algorithm>
#include <cstdint>
#include <utility>

namespace nibble::server {
namespace {

// The user's name of Basic is not looked at, but it has a length.
constexpr size_t kMaxBasicBytes = 2 * kMaxApiKeyBytes;

bool IsVisible(char c) { return c > 0x20 && c < 0x7f; }

bool EqualsIgnoreCase(std::string_view text, std::string_view lower) {
  return std::equal(text.begin(), text.end(), lower.begin(), lower.end(), [](char a, char b) {
    return (a >= 'A' && a <= 'Z' ? static_cast<char>(a + 32) : a) == b;
  });
}

int Base64Digit(char c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  if (c == '+') return 62;
  if (c == '/') return 63;
  return -1;
}

// Strict: whole groups of four, padding at the end only, no bits left over. Two texts never mean
// the same bytes.
std::optional<std::string> DecodeBase64(std::string_view text) {
  if (text.empty() || text.size() % 4 != 0) return std::nullopt;
  const size_t padding = text.size() - std::min(text.find('='), text.size());
  if (padding > 2) return std::nullopt;
  text.remove_suffix(padding);
  std::string bytes;
  uint32_t bits = 0;
  int num_bits = 0;
  for (const char c : text) {
    const int digit = Base64Digit(c);
    if (digit < 0) return std::nullopt;
    bits = (bits << 6 | static_cast<uint32_t>(digit)) & 0xffff;
    num_bits += 6;
    if (num_bits < 8) continue;
    num_bits -= 8;
    bytes.push_back(static_cast<char>(bits >> num_bits & 0xff));
  }
  if ((bits & ((1U << num_bits) - 1)) != 0) return std::nullopt;
  return bytes;
}

}  // namespace

absl::Status CheckApiKey(std::string_view key) {
  if (key.empty()) return InvalidArgument("an API key is empty");
  if (key.size() > kMaxApiKeyBytes) {
    return InvalidArgument("an API key has {} bytes, the limit is {}", key.size(), kMaxApiKeyBytes);
  }
  const auto bad = std::find_if_not(key.begin(), key.end(), IsVisible);
  if (bad == key.end()) return absl::OkStatus();
  return InvalidArgument(
      "an API key has byte 0x{:02x} at position {}, want visible ASCII characters only",
      static_cast<unsigned char>(*bad), bad - key.begin() + 1);
}

std::optional<Credential> ParseAuthorization(std::string_view header) {
  const size_t space = header.find(' ');
  if (space == std::string_view::npos) return std::nullopt;
  const std::string_view scheme = header.substr(0, space);
  std::string_view word = header.substr(space);
  word.remove_prefix(std::min(word.find_first_not_of(' '), word.size()));
  word = word.substr(0, word.find_last_not_of(' ') + 1);

  Credential credential;
  if (EqualsIgnoreCase(scheme, "bearer")) {
    credential.key = std::string(word);
  } else if (EqualsIgnoreCase(scheme, "basic")) {
    if (word.size() > kMaxBasicBytes * 4 / 3) return std::nullopt;
    const std::optional<std::string> pair = DecodeBase64(word);
    const size_t colon = pair.has_value() ? pair->find(':') : std::string::npos;
    if (colon == std::string::npos) return std::nullopt;
    credential = {.by_basic = true, .key = pair->substr(colon + 1)};
  } else {
    return std::nullopt;
  }
  if (!CheckApiKey(credential.key).ok()) return std::nullopt;
  return credential;
}

}  // namespace nibble::server
