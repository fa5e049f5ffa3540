// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The methods of Python's str. Positions are code points.
#include <algorithm>
#include <limits>
#include <span>

#include "server/chat/jinja/arguments.h"
#include "server/chat/jinja/format.h"
#include "server/chat/jinja/objects.h"
#include "server/chat/jinja/operators.h"
#include "server/chat/jinja/text.h"

namespace nibble::server::jinja {
namespace {

using Result = absl::StatusOr<Value>;
constexpr size_t kNpos = std::string::npos;

template <auto Map>
Result MapText(Interpreter& interpreter, const Value& self, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "str method", 0, {}));
  NIBBLE_RETURN_IF_ERROR(interpreter.ChargeWalk(self.text()));
  return interpreter.MakeString(Map(self.text()));
}

template <bool kLeft, bool kRight>
Result StripMethod(Interpreter& interpreter, const Value& self, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "strip", 0, {"chars"}));
  if (!bound.Has(0) || bound[0]->IsNone()) {
    const std::string_view kept = Strip(self.text(), kLeft, kRight);
    NIBBLE_RETURN_IF_ERROR(interpreter.Charge(
        static_cast<int64_t>(self.text().size() - kept.size()) / kWalkedBytesPerStep));
    return interpreter.MakeString(std::string(kept));
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::string_view chars, bound.Text(0, ""));
  NIBBLE_RETURN_IF_ERROR(interpreter.ChargeSearch(self.text(), chars));
  return interpreter.MakeString(std::string(StripChars(self.text(), chars, kLeft, kRight)));
}

// Splits at white space, at most `limit` times; the rest keeps its own blanks inside.
std::vector<std::string_view> SplitSpace(std::string_view text, int64_t limit, bool from_right) {
  std::vector<std::string_view> parts;
  text = Strip(text, !from_right, from_right);
  while (!text.empty()) {
    if (limit-- == 0) {
      parts.push_back(text);
      break;
    }
    // The run of other characters at the working end.
    size_t at = from_right ? text.size() : 0;
    while (from_right ? at > 0 : at < text.size()) {
      size_t start = at;
      if (from_right) {
        --start;
        while (start > 0 && (static_cast<uint8_t>(text[start]) & 0xc0) == 0x80) --start;
      }
      size_t length = 0;
      if (IsSpace(FrontChar(text.substr(start), &length))) break;
      at = from_right ? start : start + length;
    }
    parts.push_back(from_right ? text.substr(at) : text.substr(0, at));
    text =
        from_right ? Strip(text.substr(0, at), false, true) : Strip(text.substr(at), true, false);
  }
  return parts;
}

Result SplitMethod(Interpreter& interpreter, const Value& self, const Args& args, bool from_right) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "split", 0, {"sep", "maxsplit"}));
  NIBBLE_ASSIGN_OR_RETURN(int64_t limit, bound.Integer(1, -1));
  if (limit < 0) limit = std::numeric_limits<int64_t>::max();
  std::string_view rest = self.text();
  std::vector<std::string_view> parts;
  if (!bound.Has(0) || bound[0]->IsNone()) {
    NIBBLE_RETURN_IF_ERROR(interpreter.ChargeWalk(rest));
    parts = SplitSpace(rest, limit, from_right);
  } else {
    NIBBLE_ASSIGN_OR_RETURN(const std::string_view separator, bound.Text(0, ""));
    if (separator.empty()) return InvalidArgument("empty separator");
    NIBBLE_RETURN_IF_ERROR(interpreter.ChargeSearch(rest, separator));
    for (; limit > 0; --limit) {
      const size_t at = from_right ? rest.rfind(separator) : rest.find(separator);
      if (at == kNpos) break;
      NIBBLE_RETURN_IF_ERROR(interpreter.Charge(1));
      if (from_right) {
        parts.push_back(rest.substr(at + separator.size()));
        rest = rest.substr(0, at);
      } else {
        parts.push_back(rest.substr(0, at));
        rest.remove_prefix(at + separator.size());
      }
    }
    parts.push_back(rest);
  }
  if (from_right) std::reverse(parts.begin(), parts.end());
  NIBBLE_RETURN_IF_ERROR(interpreter.Charge(static_cast<int64_t>(parts.size())));
  std::vector<Value> items;
  items.reserve(parts.size());
  for (const std::string_view part : parts) items.emplace_back(std::string(part));
  NIBBLE_RETURN_IF_ERROR(interpreter.ChargeText(self.text().size()));
  return interpreter.MakeList(std::move(items));
}
Result Split(Interpreter& i, const Value& s, const Args& a) { return SplitMethod(i, s, a, false); }
Result RSplit(Interpreter& i, const Value& s, const Args& a) { return SplitMethod(i, s, a, true); }

Result SplitLines(Interpreter& interpreter, const Value& self, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "splitlines", 0, {"keepends"}));
  const bool keep = bound.Truth(0, false);
  std::vector<Value> lines;
  std::string_view text = self.text();
  NIBBLE_RETURN_IF_ERROR(interpreter.ChargeWalk(text));
  size_t start = 0;
  for (size_t at = 0; at < text.size();) {
    size_t length = 0;
    const char32_t point = FrontChar(text.substr(at), &length);
    const bool ends = (point >= 0x0a && point <= 0x0d) || (point >= 0x1c && point <= 0x1e) ||
                      point == 0x85 || point == 0x2028 || point == 0x2029;
    if (!ends) {
      at += length;
      continue;
    }
    NIBBLE_RETURN_IF_ERROR(interpreter.Charge(1));
    size_t next = at + length;
    if (point == '\r' && next < text.size() && text[next] == '\n') ++next;
    lines.emplace_back(std::string(text.substr(start, (keep ? next : at) - start)));
    at = start = next;
  }
  if (start < text.size()) lines.emplace_back(std::string(text.substr(start)));
  return interpreter.MakeList(std::move(lines));
}

Result AffixMethod(Interpreter& interpreter, const Value& self, const Args& args, bool at_start) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound,
                          Bound::Bind(args, "startswith/endswith", 1, {"prefix", "start", "end"}));
  Value subject = self;
  if (bound.Has(1) || bound.Has(2)) {
    NIBBLE_ASSIGN_OR_RETURN(const int64_t start, bound.Integer(1, 0));
    NIBBLE_ASSIGN_OR_RETURN(const int64_t end,
                            bound.Integer(2, std::numeric_limits<int64_t>::max()));
    NIBBLE_ASSIGN_OR_RETURN(subject, Slice(interpreter, self, start, end, std::nullopt));
  }
  std::span<const Value> affixes(bound[0], 1);
  if (const Sequence* tuple = bound[0]->sequence();
      tuple != nullptr && tuple->kind == SequenceKind::kTuple) {
    affixes = tuple->items;
  }
  for (const Value& affix : affixes) {
    NIBBLE_RETURN_IF_ERROR(interpreter.ChargeCompare(subject, affix));
    if (!affix.IsString()) {
      return InvalidArgument("{} first arg must be str or a tuple of str, not {}",
                             at_start ? "startswith" : "endswith", affix.TypeName());
    }
    if (at_start ? subject.text().starts_with(affix.text())
                 : subject.text().ends_with(affix.text())) {
      return Value(true);
    }
  }
  return Value(false);
}
Result StartsWith(Interpreter& i, const Value& s, const Args& a) {
  return AffixMethod(i, s, a, true);
}
Result EndsWith(Interpreter& i, const Value& s, const Args& a) {
  return AffixMethod(i, s, a, false);
}

Result RemoveAffix(Interpreter& interpreter, const Value& self, const Args& args, bool at_start) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound,
                          Bound::Bind(args, "removeprefix/suffix", 1, {"affix"}));
  NIBBLE_ASSIGN_OR_RETURN(const std::string_view affix, bound.Text(0, ""));
  NIBBLE_RETURN_IF_ERROR(interpreter.ChargeCompare(self, *bound[0]));
  std::string_view text = self.text();
  if (at_start && text.starts_with(affix)) text.remove_prefix(affix.size());
  if (!at_start && text.ends_with(affix)) text.remove_suffix(affix.size());
  return interpreter.MakeString(std::string(text));
}
Result RemovePrefix(Interpreter& i, const Value& s, const Args& a) {
  return RemoveAffix(i, s, a, true);
}
Result RemoveSuffix(Interpreter& i, const Value& s, const Args& a) {
  return RemoveAffix(i, s, a, false);
}

Result Replace(Interpreter& interpreter, const Value& self, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound,
                          Bound::Bind(args, "replace", 2, {"old", "new", "count"}));
  NIBBLE_ASSIGN_OR_RETURN(const std::string_view from, bound.Text(0, ""));
  NIBBLE_ASSIGN_OR_RETURN(const std::string_view to, bound.Text(1, ""));
  NIBBLE_ASSIGN_OR_RETURN(int64_t left, bound.Integer(2, -1));
  if (left < 0) left = std::numeric_limits<int64_t>::max();
  const std::string& text = self.text();
  NIBBLE_RETURN_IF_ERROR(interpreter.ChargeSearch(text, from));
  std::string out;
  size_t at = 0;
  // An empty pattern stands between all characters.
  for (; left > 0 && at <= text.size(); --left) {
    const size_t found = text.find(from, at);
    if (found == kNpos) break;
    out.append(text, at, found - at);
    out += to;
    at = found + from.size();
    if (from.empty()) {
      if (at == text.size()) {
        ++at;
        break;
      }
      size_t length = 0;
      FrontChar(std::string_view(text).substr(at), &length);
      out.append(text, at, length);
      at += length;
    }
    if (out.size() > interpreter.max_text_bytes()) return interpreter.MakeString(std::move(out));
  }
  if (at < text.size()) out.append(text, at);
  return interpreter.MakeString(std::move(out));
}

// find, rfind, index, rindex: the code point where `part` begins, -1 or an error without one.
Result FindMethod(Interpreter& interpreter, const Value& self, const Args& args, bool last,
                  bool required) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "find", 1, {"sub", "start", "end"}));
  NIBBLE_ASSIGN_OR_RETURN(const std::string_view part, bound.Text(0, ""));
  NIBBLE_ASSIGN_OR_RETURN(int64_t start, bound.Integer(1, 0));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t end, bound.Integer(2, std::numeric_limits<int64_t>::max()));
  const int64_t length = self.string().num_chars;
  if (start < 0) start = std::max<int64_t>(start, -length) + length;
  NIBBLE_ASSIGN_OR_RETURN(const Value within, Slice(interpreter, self, start, end, std::nullopt));
  NIBBLE_RETURN_IF_ERROR(interpreter.ChargeSearch(within.text(), part));
  const size_t at = last ? within.text().rfind(part) : within.text().find(part);
  if (at == kNpos || start > length) {
    if (required) return InvalidArgument("substring not found");
    return Value(int64_t{-1});
  }
  return Value(start + NumChars(std::string_view(within.text()).substr(0, at)));
}
Result Find(Interpreter& i, const Value& s, const Args& a) {
  return FindMethod(i, s, a, false, false);
}
Result RFind(Interpreter& i, const Value& s, const Args& a) {
  return FindMethod(i, s, a, true, false);
}
Result Index(Interpreter& i, const Value& s, const Args& a) {
  return FindMethod(i, s, a, false, true);
}
Result RIndex(Interpreter& i, const Value& s, const Args& a) {
  return FindMethod(i, s, a, true, true);
}

Result Count(Interpreter& interpreter, const Value& self, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "count", 1, {"sub"}));
  NIBBLE_ASSIGN_OR_RETURN(const std::string_view part, bound.Text(0, ""));
  if (part.empty()) return Value(self.string().num_chars + 1);
  NIBBLE_RETURN_IF_ERROR(interpreter.ChargeSearch(self.text(), part));
  int64_t count = 0;
  for (size_t at = self.text().find(part); at != kNpos;
       at = self.text().find(part, at + part.size())) {
    ++count;
  }
  return Value(count);
}

Result Join(Interpreter& interpreter, const Value& self, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "join", 1, {"iterable"}));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<Value> items, interpreter.Iterate(*bound[0]));
  std::string out;
  for (size_t index = 0; index < items.size(); ++index) {
    if (!items[index].IsString()) {
      return InvalidArgument("sequence item {}: expected str instance, {} found", index,
                             items[index].TypeName());
    }
    if (index > 0) out += self.text();
    out += items[index].text();
    if (out.size() > interpreter.max_text_bytes()) break;  // MakeString refuses it
  }
  return interpreter.MakeString(std::move(out));
}

Result Partition(Interpreter& interpreter, const Value& self, const Args& args, bool last) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "partition", 1, {"sep"}));
  NIBBLE_ASSIGN_OR_RETURN(const std::string_view separator, bound.Text(0, ""));
  if (separator.empty()) return InvalidArgument("empty separator");
  const std::string& text = self.text();
  NIBBLE_RETURN_IF_ERROR(interpreter.ChargeSearch(text, separator));
  const size_t at = last ? text.rfind(separator) : text.find(separator);
  std::vector<Value> parts;
  if (at == kNpos) {
    parts = {Value(std::string()), Value(std::string()), Value(std::string())};
    parts[last ? 2 : 0] = self;
  } else {
    parts = {Value(text.substr(0, at)), Value(std::string(separator)),
             Value(text.substr(at + separator.size()))};
  }
  NIBBLE_RETURN_IF_ERROR(interpreter.ChargeText(text.size()));
  return interpreter.MakeSequence(SequenceKind::kTuple, std::move(parts));
}
Result PartitionLeft(Interpreter& i, const Value& s, const Args& a) {
  return Partition(i, s, a, false);
}
Result PartitionRight(Interpreter& i, const Value& s, const Args& a) {
  return Partition(i, s, a, true);
}

enum class Side { kLeft, kRight, kBoth, kZeros };

Result Pad(Interpreter& interpreter, const Value& self, const Args& args, Side side) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound,
                          Bound::Bind(args, "justify", 1, {"width", "fillchar"}));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t width, bound.Integer(0, 0));
  NIBBLE_ASSIGN_OR_RETURN(const std::string_view fill,
                          bound.Text(1, side == Side::kZeros ? "0" : " "));
  constexpr size_t kMaxCharBytes = 4;
  if (fill.size() > kMaxCharBytes || NumChars(fill) != 1) {
    return InvalidArgument("The fill character must be exactly one character long");
  }
  const int64_t missing = width - self.string().num_chars;
  if (missing <= 0) return self;
  NIBBLE_RETURN_IF_ERROR(interpreter.ChargeText(static_cast<uint64_t>(missing) * 4));
  // Where Python's center puts the odd blank.
  int64_t left = side == Side::kRight ? 0 : missing;
  if (side == Side::kBoth) left = missing / 2 + (missing & width & 1);
  std::string out;
  size_t sign = 0;
  if (side == Side::kZeros && !self.text().empty()) {
    sign = self.text().front() == '-' || self.text().front() == '+' ? 1 : 0;
    out.append(self.text(), 0, sign);
  }
  for (int64_t index = 0; index < left; ++index) out += fill;
  out.append(self.text(), sign);
  for (int64_t index = left; index < missing; ++index) out += fill;
  return interpreter.MakeString(std::move(out));
}
Result RJust(Interpreter& i, const Value& s, const Args& a) { return Pad(i, s, a, Side::kLeft); }
Result LJust(Interpreter& i, const Value& s, const Args& a) { return Pad(i, s, a, Side::kRight); }
Result Center(Interpreter& i, const Value& s, const Args& a) { return Pad(i, s, a, Side::kBoth); }
Result ZFill(Interpreter& i, const Value& s, const Args& a) { return Pad(i, s, a, Side::kZeros); }

// True when the text is not empty and all its characters pass.
template <auto Predicate>
Result All(Interpreter& interpreter, const Value& self, const Args&) {
  NIBBLE_RETURN_IF_ERROR(interpreter.ChargeWalk(self.text()));
  std::string_view rest = self.text();
  if (rest.empty()) return Value(false);
  while (!rest.empty()) {
    size_t length = 0;
    if (!Predicate(FrontChar(rest, &length))) return Value(false);
    rest.remove_prefix(length);
  }
  return Value(true);
}

// At least one cased character, and none of the other case.
template <auto Wanted, auto Other>
Result Cased(Interpreter& interpreter, const Value& self, const Args&) {
  NIBBLE_RETURN_IF_ERROR(interpreter.ChargeWalk(self.text()));
  bool found = false;
  for (std::string_view rest = self.text(); !rest.empty();) {
    size_t length = 0;
    const char32_t point = FrontChar(rest, &length);
    if (Other(point)) return Value(false);
    found = found || Wanted(point);
    rest.remove_prefix(length);
  }
  return Value(found);
}

bool IsAlnum(char32_t point) { return IsLetter(point) || IsDecimalDigit(point); }

Result FormatMethod(Interpreter& interpreter, const Value& self, const Args& args) {
  return FormatBraces(interpreter, self.text(), args);
}

constexpr std::pair<std::string_view, Method> kMethods[] = {
    {"capitalize", MapText<Capitalize>},
    {"casefold", MapText<ToLower>},
    {"center", Center},
    {"count", Count},
    {"endswith", EndsWith},
    {"find", Find},
    {"format", FormatMethod},
    {"index", Index},
    {"isalnum", All<IsAlnum>},
    {"isalpha", All<IsLetter>},
    {"isdecimal", All<IsDecimalDigit>},
    {"isdigit", All<IsDecimalDigit>},
    {"islower", Cased<IsLowerCase, IsUpperCase>},
    {"isnumeric", All<IsDecimalDigit>},
    {"isspace", All<IsSpace>},
    {"isupper", Cased<IsUpperCase, IsLowerCase>},
    {"join", Join},
    {"ljust", LJust},
    {"lower", MapText<ToLower>},
    {"lstrip", StripMethod<true, false>},
    {"partition", PartitionLeft},
    {"removeprefix", RemovePrefix},
    {"removesuffix", RemoveSuffix},
    {"replace", Replace},
    {"rfind", RFind},
    {"rindex", RIndex},
    {"rjust", RJust},
    {"rpartition", PartitionRight},
    {"rsplit", RSplit},
    {"rstrip", StripMethod<false, true>},
    {"split", Split},
    {"splitlines", SplitLines},
    {"startswith", StartsWith},
    {"strip", StripMethod<true, true>},
    {"title", MapText<TitleCase>},
    {"upper", MapText<ToUpper>},
    {"zfill", ZFill},
};

}  // namespace

Method FindStringMethod(std::string_view name) {
  for (const auto& [known, method] : kMethods) {
    if (known == name) return method;
  }
  return nullptr;
}

}  // namespace nibble::server::jinja
