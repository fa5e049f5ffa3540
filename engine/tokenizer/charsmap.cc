// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/tokenizer/charsmap.h"

#include <cstring>

#include "absl/strings/escaping.h"

#include "base/utf8.h"

namespace nibble::engine {
namespace {

constexpr size_t kMaxBlobBytes = size_t{16} << 20;  // nmt_nfkc is 240 KB

// A unit of the double array: label in the low 8 bits (and the sign bit, which marks values), a
// flag for "a key ends here" in bit 8, and the offset to its children above, scaled by 256 if bit 9
// is set.
bool HasLeaf(uint32_t unit) { return ((unit >> 8) & 1U) != 0; }
uint32_t Value(uint32_t unit) { return unit & 0x7fffffffU; }
uint32_t Label(uint32_t unit) { return unit & 0x800000ffU; }
bool IsContinuation(char byte) { return (static_cast<uint8_t>(byte) & 0xc0) == 0x80; }
uint32_t Offset(uint32_t unit) { return (unit >> 10) << ((unit & (1U << 9)) >> 6); }

}  // namespace

absl::StatusOr<Charsmap> Charsmap::Parse(std::string_view blob) {
  Charsmap map;
  if (blob.empty()) return map;
  if (blob.size() > kMaxBlobBytes) {
    return InvalidArgument("character map of {} bytes, the limit is {}", blob.size(),
                           kMaxBlobBytes);
  }
  uint32_t trie_bytes = 0;
  if (blob.size() < sizeof(trie_bytes)) {
    return InvalidArgument("character map of {} bytes is too short for its header", blob.size());
  }
  std::memcpy(&trie_bytes, blob.data(), sizeof(trie_bytes));
  blob.remove_prefix(sizeof(trie_bytes));
  if (trie_bytes == 0 || trie_bytes % 4 != 0 || trie_bytes > blob.size()) {
    return InvalidArgument("character map declares a trie of {} bytes, {} follow", trie_bytes,
                           blob.size());
  }
  map.units_.resize(trie_bytes / 4);
  std::memcpy(map.units_.data(), blob.data(), trie_bytes);
  map.strings_ = std::string(blob.substr(trie_bytes));
  if (map.strings_.empty() || map.strings_.back() != '\0' || !IsValidUtf8(map.strings_)) {
    return InvalidArgument("character map's strings are not NUL-terminated UTF-8");
  }
  return map;
}

Charsmap::Match Charsmap::Find(std::string_view text, bool longest) const {
  Match match;
  if (units_.empty()) return match;
  uint32_t node = Offset(units_[0]);
  for (size_t pos = 0; pos < text.size(); ++pos) {
    const auto byte = static_cast<uint8_t>(text[pos]);
    node ^= byte;
    if (node >= units_.size() || Label(units_[node]) != byte) break;
    const uint32_t unit = units_[node];
    node ^= Offset(unit);
    if (!HasLeaf(unit)) continue;
    if (node >= units_.size()) break;
    const uint32_t offset = Value(units_[node]);
    // A key or a string that begins or ends within a character would make invalid UTF-8: no entry.
    const bool cuts_text = pos + 1 < text.size() && IsContinuation(text[pos + 1]);
    if (cuts_text || offset >= strings_.size() || IsContinuation(strings_[offset])) continue;
    match = {pos + 1, std::string_view(strings_.data() + offset)};
    if (!longest) break;
  }
  return match;
}

absl::StatusOr<std::string> DecodeBase64(std::string_view text) {
  std::string bytes;
  if (!absl::Base64Unescape(absl::string_view(text.data(), text.size()), &bytes)) {
    return InvalidArgument("not base64");
  }
  return bytes;
}

}  // namespace nibble::engine
