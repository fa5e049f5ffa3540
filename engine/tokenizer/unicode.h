// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Characters as the tokenizer libraries class them. All functions take valid UTF-8 unless said
// otherwise; validation happens once, at Encode().
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace nibble::engine {

inline constexpr std::string_view kReplacementCharacter = "\xef\xbf\xbd";  // U+FFFD
inline constexpr std::string_view kMetaspace = "\xe2\x96\x81";  // U+2581, SentencePiece's blank

// Length in bytes of the character that starts with `lead`.
constexpr size_t Utf8Length(char lead) {
  const auto byte = static_cast<uint8_t>(lead);
  return byte < 0x80 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
}

// The character at `text[*pos]`; moves `*pos` behind it. REQUIRES: *pos < text.size().
char32_t NextCharacter(std::string_view text, size_t* pos);
// The last character of non-empty `text`.
char32_t LastCharacter(std::string_view text);
void AppendUtf8(char32_t character, std::string* out);
std::string ToUtf8(char32_t character);

bool IsAscii(std::string_view text);

bool IsWhitespace(char32_t character);   // the White_Space property
bool IsNumeric(char32_t character);      // general category N
bool IsPunctuation(char32_t character);  // ASCII punctuation or general category P
bool IsMark(char32_t character);         // general category M
bool IsWord(char32_t character);         // \w of the Unicode recommendations
void AppendLowercase(char32_t character, std::string* out);
// Grapheme cluster that starts `text`: its length in bytes.
size_t GraphemeLength(std::string_view text);

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };
std::string Normalize(std::string_view text, NormalForm form);

// GPT-2's printable alphabet for bytes: byte -> UTF-8 of its character, and back.
const std::array<std::string, 256>& ByteAlphabet();
// The byte a character of that alphabet stands for, or -1.
int ByteOfAlphabet(char32_t character);

}  // namespace nibble::engine
