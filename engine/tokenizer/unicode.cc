// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/tokenizer/unicode.h"

#include <algorithm>
#include <vector>

#include "utf8proc.h"

namespace nibble::engine {
namespace {

utf8proc_category_t Category(char32_t character) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(character));
}

bool InRange(utf8proc_category_t category, utf8proc_category_t first, utf8proc_category_t last) {
  return category >= first && category <= last;
}

int CombiningClass(utf8proc_int32_t character) {
  return utf8proc_get_property(character)->combining_class;
}

// The characters that GPT-2 writes as themselves; the other bytes get 256, 257, ...
bool IsOwnLetter(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

}  // namespace

char32_t NextCharacter(std::string_view text, size_t* pos) {
  const auto byte = [&](size_t index) {
    return static_cast<char32_t>(static_cast<uint8_t>(text[index]));
  };
  const size_t at = *pos;
  const size_t length = std::min(Utf8Length(text[at]), text.size() - at);
  *pos = at + length;
  if (length == 1) return byte(at);
  char32_t value = byte(at) & (0xffU >> (length + 1));
  for (size_t index = 1; index < length; ++index) value = (value << 6) | (byte(at + index) & 0x3fU);
  return value;
}

char32_t LastCharacter(std::string_view text) {
  size_t pos = text.size() - 1;
  while (pos > 0 && (static_cast<uint8_t>(text[pos]) & 0xc0) == 0x80) --pos;
  return NextCharacter(text, &pos);
}

void AppendUtf8(char32_t character, std::string* out) {
  utf8proc_uint8_t bytes[4];
  const utf8proc_ssize_t length =
      utf8proc_encode_char(static_cast<utf8proc_int32_t>(character), bytes);
  out->append(bytes, bytes + length);
}

std::string ToUtf8(char32_t character) {
  std::string result;
  AppendUtf8(character, &result);
  return result;
}

bool IsAscii(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<uint8_t>(c) < 0x80; });
}

bool IsWhitespace(char32_t c) {
  if (c < 0x80) return c == ' ' || (c >= 0x09 && c <= 0x0d);
  return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
         c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

bool IsNumeric(char32_t c) {
  return InRange(Category(c), UTF8PROC_CATEGORY_ND, UTF8PROC_CATEGORY_NO);
}

bool IsPunctuation(char32_t c) {
  if (c < 0x80) return c > 0x20 && c < 0x7f && (!IsWord(c) || c == '_');
  return InRange(Category(c), UTF8PROC_CATEGORY_PC, UTF8PROC_CATEGORY_PO);
}

bool IsMark(char32_t c) { return InRange(Category(c), UTF8PROC_CATEGORY_MN, UTF8PROC_CATEGORY_ME); }

bool IsWord(char32_t c) {
  if (c < 0x80) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
  }
  const utf8proc_category_t category = Category(c);
  return InRange(category, UTF8PROC_CATEGORY_LU, UTF8PROC_CATEGORY_ND) ||
         category == UTF8PROC_CATEGORY_NL || category == UTF8PROC_CATEGORY_PC || c == 0x200c ||
         c == 0x200d || (c >= 0x24b6 && c <= 0x24e9);  // joiners; circled letters are alphabetic
}

void AppendLowercase(char32_t c, std::string* out) {
  if (c == 0x130) {  // the one letter whose lower case is two characters
    out->append("i\xcc\x87");
    return;
  }
  AppendUtf8(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))), out);
}

size_t GraphemeLength(std::string_view text) {
  utf8proc_int32_t state = 0;
  size_t pos = 0;
  auto previous = static_cast<utf8proc_int32_t>(NextCharacter(text, &pos));
  while (pos < text.size()) {
    size_t next = pos;
    const auto character = static_cast<utf8proc_int32_t>(NextCharacter(text, &next));
    if (utf8proc_grapheme_break_stateful(previous, character, &state)) break;
    previous = character;
    pos = next;
  }
  return pos;
}

std::string Normalize(std::string_view text, NormalForm form) {
  if (IsAscii(text)) return std::string(text);
  const bool compose = form == NormalForm::kNfc || form == NormalForm::kNfkc;
  const bool compatible = form == NormalForm::kNfkc || form == NormalForm::kNfkd;
  int options = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE;
  if (compatible) options |= UTF8PROC_COMPAT;
  // utf8proc_map() orders combining marks by exchanging neighbours, which is quadratic in the
  // length of a run of marks; a request can be one such run. So the steps are done here.
  std::vector<utf8proc_int32_t> characters;
  characters.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const auto character = static_cast<utf8proc_int32_t>(NextCharacter(text, &pos));
    utf8proc_int32_t parts[32];  // the longest decomposition has 18 characters
    int boundary_class = 0;
    const utf8proc_ssize_t count = utf8proc_decompose_char(
        character, parts, 32, static_cast<utf8proc_option_t>(options), &boundary_class);
    if (count < 0 || count > 32) {
      characters.push_back(character);
    } else {
      characters.insert(characters.end(), parts, parts + count);
    }
  }
  for (auto begin = characters.begin(); begin != characters.end();) {
    const auto is_starter = [](utf8proc_int32_t c) { return CombiningClass(c) == 0; };
    begin = std::find_if_not(begin, characters.end(), is_starter);
    const auto end = std::find_if(begin, characters.end(), is_starter);
    std::stable_sort(begin, end, [](utf8proc_int32_t a, utf8proc_int32_t b) {
      return CombiningClass(a) < CombiningClass(b);
    });
    begin = end;
  }
  auto length = static_cast<utf8proc_ssize_t>(characters.size());
  if (compose) {
    length = utf8proc_normalize_utf32(
        characters.data(), length,
        static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  }
  std::string result;
  result.reserve(text.size());
  for (utf8proc_ssize_t index = 0; index < length; ++index) {
    AppendUtf8(static_cast<char32_t>(characters[static_cast<size_t>(index)]), &result);
  }
  return result;
}

const std::array<std::string, 256>& ByteAlphabet() {
  static const std::array<std::string, 256> kAlphabet = [] {
    std::array<std::string, 256> alphabet;
    char32_t next = 256;
    for (int byte = 0; byte < 256; ++byte) {
      alphabet[static_cast<size_t>(byte)] =
          ToUtf8(IsOwnLetter(byte) ? static_cast<char32_t>(byte) : next++);
    }
    return alphabet;
  }();
  return kAlphabet;
}

int ByteOfAlphabet(char32_t character) {
  static const std::array<int, 512> kBytes = [] {
    std::array<int, 512> bytes;
    bytes.fill(-1);
    for (int byte = 0; byte < 256; ++byte) {
      size_t pos = 0;
      bytes[NextCharacter(ByteAlphabet()[static_cast<size_t>(byte)], &pos)] = byte;
    }
    return bytes;
  }();
  return character < kBytes.size() ? kBytes[character] : -1;
}

}  // namespace nibble::engine
