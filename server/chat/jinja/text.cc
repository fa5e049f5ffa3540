// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/chat/jinja/text.h"

#include <charconv>
#include <cmath>

#include "fmt/format.h"

#include "utf8proc.h"

namespace nibble::server::jinja {
namespace {

bool IsContinuation(char byte) { return (static_cast<uint8_t>(byte) & 0xc0) == 0x80; }

size_t CharLength(char lead) {
  const auto byte = static_cast<uint8_t>(lead);
  if (byte < 0x80) return 1;
  if (byte < 0xe0) return 2;
  return byte < 0xf0 ? 3 : 4;
}

template <typename Function>
std::string MapChars(std::string_view text, Function&& function) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    size_t length = 0;
    AppendChar(function(FrontChar(text, &length)), &out);
    text.remove_prefix(length);
  }
  return out;
}

char32_t Upper(char32_t point) {
  return static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(point)));
}

char32_t Lower(char32_t point) {
  return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(point)));
}

char32_t Title(char32_t point) {
  return static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(point)));
}

utf8proc_category_t Category(char32_t point) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(point));
}

// What Python's repr writes as an escape: controls, separators other than space, unassigned.
bool IsPrintable(char32_t point) {
  if (point == ' ') return true;
  switch (Category(point)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    default:
      return true;
  }
}

}  // namespace

int64_t NumChars(std::string_view text) {
  int64_t count = 0;
  for (const char byte : text) count += IsContinuation(byte) ? 0 : 1;
  return count;
}

char32_t FrontChar(std::string_view text, size_t* length) {
  *length = std::min(CharLength(text.front()), text.size());
  auto point = static_cast<char32_t>(static_cast<uint8_t>(text.front()));
  if (*length == 1) return point;
  point &= 0xffU >> (*length + 1);
  for (size_t index = 1; index < *length; ++index) {
    point = (point << 6) | (static_cast<uint8_t>(text[index]) & 0x3fU);
  }
  return point;
}

void AppendChar(char32_t point, std::string* out) {
  const auto byte = [out](char32_t bits) { out->push_back(static_cast<char>(bits)); };
  if (point < 0x80) {
    byte(point);
  } else if (point < 0x800) {
    byte(0xc0 | (point >> 6));
    byte(0x80 | (point & 0x3f));
  } else if (point < 0x10000) {
    byte(0xe0 | (point >> 12));
    byte(0x80 | ((point >> 6) & 0x3f));
    byte(0x80 | (point & 0x3f));
  } else {
    byte(0xf0 | (point >> 18));
    byte(0x80 | ((point >> 12) & 0x3f));
    byte(0x80 | ((point >> 6) & 0x3f));
    byte(0x80 | (point & 0x3f));
  }
}

size_t ByteOffset(std::string_view text, int64_t index) {
  size_t offset = 0;
  while (index > 0 && offset < text.size()) {
    offset += CharLength(text[offset]);
    --index;
  }
  return std::min(offset, text.size());
}

std::vector<std::string_view> SplitChars(std::string_view text) {
  std::vector<std::string_view> chars;
  while (!text.empty()) {
    const size_t length = std::min(CharLength(text.front()), text.size());
    chars.push_back(text.substr(0, length));
    text.remove_prefix(length);
  }
  return chars;
}

bool IsSpace(char32_t point) {
  return (point >= 0x09 && point <= 0x0d) || (point >= 0x1c && point <= 0x20) || point == 0x85 ||
         point == 0xa0 || point == 0x1680 || (point >= 0x2000 && point <= 0x200a) ||
         point == 0x2028 || point == 0x2029 || point == 0x202f || point == 0x205f ||
         point == 0x3000;
}

namespace {

template <typename Predicate>
std::string_view StripIf(std::string_view text, bool left, bool right, Predicate&& predicate) {
  while (left && !text.empty()) {
    size_t length = 0;
    if (!predicate(FrontChar(text, &length))) break;
    text.remove_prefix(length);
  }
  while (right && !text.empty()) {
    size_t start = text.size() - 1;
    while (start > 0 && IsContinuation(text[start])) --start;
    size_t length = 0;
    if (!predicate(FrontChar(text.substr(start), &length))) break;
    text.remove_suffix(text.size() - start);
  }
  return text;
}

}  // namespace

std::string_view Strip(std::string_view text, bool left, bool right) {
  return StripIf(text, left, right, IsSpace);
}

std::string_view StripChars(std::string_view text, std::string_view chars, bool left, bool right) {
  return StripIf(text, left, right, [chars](char32_t point) {
    std::string encoded;
    AppendChar(point, &encoded);
    return chars.find(encoded) != std::string_view::npos;
  });
}

std::string ToUpper(std::string_view text) { return MapChars(text, Upper); }
std::string ToLower(std::string_view text) { return MapChars(text, Lower); }

std::string Capitalize(std::string_view text) {
  bool first = true;
  return MapChars(text, [&first](char32_t point) {
    const char32_t mapped = first ? Title(point) : Lower(point);
    first = false;
    return mapped;
  });
}

bool IsUpperCase(char32_t point) {
  return Category(point) == UTF8PROC_CATEGORY_LU || Category(point) == UTF8PROC_CATEGORY_LT;
}
bool IsLowerCase(char32_t point) { return Category(point) == UTF8PROC_CATEGORY_LL; }

std::string TitleCase(std::string_view text) {
  bool inside = false;
  return MapChars(text, [&inside](char32_t point) {
    const char32_t mapped = inside ? Lower(point) : Title(point);
    inside = IsUpperCase(point) || IsLowerCase(point);  // only cased letters carry a word on
    return mapped;
  });
}

bool IsLetter(char32_t point) {
  const utf8proc_category_t category = Category(point);
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

bool IsDecimalDigit(char32_t point) { return Category(point) == UTF8PROC_CATEGORY_ND; }

std::string FloatRepr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[40];
  const auto result = std::to_chars(buffer, buffer + sizeof(buffer), std::abs(value),
                                    std::chars_format::scientific);
  const std::string_view written(buffer, static_cast<size_t>(result.ptr - buffer));
  const size_t mark = written.find('e');
  std::string digits;
  for (const char c : written.substr(0, mark)) {
    if (c != '.') digits.push_back(c);
  }
  const std::string_view tail = written.substr(mark + 2);
  int exponent = 0;
  std::from_chars(tail.data(), tail.data() + tail.size(), exponent);
  if (written[mark + 1] == '-') exponent = -exponent;

  const std::string sign = std::signbit(value) ? "-" : "";
  const int count = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {  // the bounds of Python's repr
    const std::string fraction = count > 1 ? "." + digits.substr(1) : "";
    return fmt::format("{}{}{}e{}{:02}", sign, digits[0], fraction, exponent < 0 ? '-' : '+',
                       std::abs(exponent));
  }
  if (exponent < 0) {
    return sign + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  }
  if (count <= exponent + 1) {
    return sign + digits + std::string(static_cast<size_t>(exponent + 1 - count), '0') + ".0";
  }
  const auto whole = static_cast<size_t>(exponent + 1);
  return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

std::string StringRepr(std::string_view text) {
  const bool double_quotes =
      text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos;
  const char quote = double_quotes ? '"' : '\'';
  std::string out(1, quote);
  while (!text.empty()) {
    size_t length = 0;
    const char32_t point = FrontChar(text, &length);
    if (point == '\n') {
      out += "\\n";
    } else if (point == '\r') {
      out += "\\r";
    } else if (point == '\t') {
      out += "\\t";
    } else if (point == '\\' || point == static_cast<char32_t>(quote)) {
      out.push_back('\\');
      out.push_back(static_cast<char>(point));
    } else if (IsPrintable(point)) {
      out.append(text.substr(0, length));
    } else if (point < 0x100) {
      out += fmt::format("\\x{:02x}", static_cast<uint32_t>(point));
    } else if (point < 0x10000) {
      out += fmt::format("\\u{:04x}", static_cast<uint32_t>(point));
    } else {
      out += fmt::format("\\U{:08x}", static_cast<uint32_t>(point));
    }
    text.remove_prefix(length);
  }
  out.push_back(quote);
  return out;
}

void AppendJsonString(std::string_view text, bool ensure_ascii, std::string* out) {
  out->push_back('"');
  while (!text.empty()) {
    size_t length = 0;
    const char32_t point = FrontChar(text, &length);
    constexpr std::string_view kNamed = "\"\\\n\r\t\b\f";
    constexpr std::string_view kLetters = "\"\\nrtbf";
    const size_t named = point < 0x80 ? kNamed.find(static_cast<char>(point)) : kNamed.npos;
    if (named != std::string_view::npos) {
      out->push_back('\\');
      out->push_back(kLetters[named]);
    } else if (point < 0x20 || (ensure_ascii && point > 0x7e && point < 0x10000)) {
      *out += fmt::format("\\u{:04x}", static_cast<uint32_t>(point));
    } else if (ensure_ascii && point >= 0x10000) {
      const auto rest = static_cast<uint32_t>(point - 0x10000);
      *out += fmt::format("\\u{:04x}\\u{:04x}", 0xd800 + (rest >> 10), 0xdc00 + (rest & 0x3ff));
    } else {
      out->append(text.substr(0, length));
    }
    text.remove_prefix(length);
  }
  out->push_back('"');
}

std::string EscapeHtml(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '"':
        out += "&#34;";
        break;
      default:
        out.push_back(c);
    }
  }
  return out;
}

}  // namespace nibble::server::jinja
