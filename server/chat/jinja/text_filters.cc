// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Filters from text to text. As in Jinja, whatever they get is made into a string first.
#include <algorithm>

#include "server/chat/jinja/arguments.h"
#include "server/chat/jinja/filters.h"
#include "server/chat/jinja/format.h"
#include "server/chat/jinja/interpreter.h"
#include "server/chat/jinja/objects.h"
#include "server/chat/jinja/text.h"

namespace nibble::server::jinja {
namespace {

using Result = absl::StatusOr<Value>;

template <auto Map>
Result MapText(Interpreter& interpreter, const Value& input, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "filter", 0, {}));
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, interpreter.ToString(input));
  NIBBLE_RETURN_IF_ERROR(interpreter.ChargeWalk(text));
  return interpreter.MakeString(Map(text));
}

Result Trim(Interpreter& interpreter, const Value& input, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "trim", 0, {"chars"}));
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, interpreter.ToString(input));
  if (!bound.Has(0) || bound[0]->IsNone()) {
    const std::string_view kept = Strip(text, true, true);
    NIBBLE_RETURN_IF_ERROR(
        interpreter.Charge(static_cast<int64_t>(text.size() - kept.size()) / kWalkedBytesPerStep));
    return interpreter.MakeString(std::string(kept));
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::string_view chars, bound.Text(0, ""));
  NIBBLE_RETURN_IF_ERROR(interpreter.ChargeSearch(text, chars));
  return interpreter.MakeString(std::string(StripChars(text, chars, true, true)));
}

// Jinja's own: every run that begins after white space or one of -({[< gets a capital.
std::string JinjaTitle(std::string_view text) {
  std::string out;
  std::string word;
  const auto flush = [&] {
    out += Capitalize(word);
    word.clear();
  };
  while (!text.empty()) {
    size_t length = 0;
    const char32_t point = FrontChar(text, &length);
    const bool separator =
        IsSpace(point) || (point < 0x80 && std::string_view("-({[<").find(
                                               static_cast<char>(point)) != std::string_view::npos);
    if (separator) flush();
    word += text.substr(0, length);
    if (separator) flush();
    text.remove_prefix(length);
  }
  flush();
  return out;
}

Result Replace(Interpreter& interpreter, const Value& input, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound,
                          Bound::Bind(args, "replace", 2, {"old", "new", "count"}));
  Args call;
  for (size_t index = 0; index < 2; ++index) {
    NIBBLE_ASSIGN_OR_RETURN(std::string text, interpreter.ToString(*bound[index]));
    call.positional.emplace_back(std::move(text));
  }
  if (bound.Has(2) && !bound[2]->IsNone()) call.positional.push_back(*bound[2]);
  NIBBLE_ASSIGN_OR_RETURN(std::string text, interpreter.ToString(input));
  return FindStringMethod("replace")(interpreter, Value(std::move(text)), call);
}

Result Indent(Interpreter& interpreter, const Value& input, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound,
                          Bound::Bind(args, "indent", 0, {"width", "first", "blank"}));
  NIBBLE_ASSIGN_OR_RETURN(const std::string source, interpreter.ToString(input));
  std::string margin;
  if (bound.Has(0) && bound[0]->IsString()) {
    NIBBLE_ASSIGN_OR_RETURN(margin, interpreter.ToString(*bound[0]));
  } else {
    NIBBLE_ASSIGN_OR_RETURN(const int64_t width, bound.Integer(0, 4));
    constexpr int64_t kMaxWidth = 10'000;
    if (width > kMaxWidth) {
      return InvalidArgument("indent: a width of {}, the limit is {}", width, kMaxWidth);
    }
    margin.assign(static_cast<size_t>(std::max<int64_t>(width, 0)), ' ');
  }
  const auto lines = static_cast<uint64_t>(1 + std::count(source.begin(), source.end(), '\n'));
  NIBBLE_RETURN_IF_ERROR(interpreter.ChargeText(source.size() + lines * margin.size()));
  std::string out;
  size_t at = 0;
  for (bool first = true; at <= source.size(); first = false) {
    const size_t end = std::min(source.find('\n', at), source.size());
    const std::string_view line = std::string_view(source).substr(at, end - at);
    if (!first) out += '\n';
    const bool indented = first ? bound.Truth(1, false) : !line.empty() || bound.Truth(2, false);
    if (indented) out += margin;
    out += line;
    at = end + 1;
  }
  return interpreter.MakeString(std::move(out));
}

Result Center(Interpreter& interpreter, const Value& input, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "center", 0, {"width"}));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t width, bound.Integer(0, 80));
  NIBBLE_ASSIGN_OR_RETURN(std::string text, interpreter.ToString(input));
  Args call;
  call.positional.emplace_back(width);
  return FindStringMethod("center")(interpreter, Value(std::move(text)), call);
}

Result Format(Interpreter& interpreter, const Value& input, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string pattern, interpreter.ToString(input));
  if (!args.named.empty()) {
    if (!args.positional.empty()) {
      return InvalidArgument("can't handle positional and keyword arguments at the same time");
    }
    std::vector<std::pair<Value, Value>> entries;
    for (const auto& [name, value] : args.named) entries.emplace_back(Value(name), value);
    NIBBLE_ASSIGN_OR_RETURN(const Value dict, interpreter.MakeDictionary(std::move(entries)));
    return FormatPercent(interpreter, pattern, dict);
  }
  NIBBLE_ASSIGN_OR_RETURN(const Value tuple,
                          interpreter.MakeSequence(SequenceKind::kTuple, args.positional));
  return FormatPercent(interpreter, pattern, tuple);
}

Result Truncate(Interpreter& interpreter, const Value& input, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "truncate", 0,
                                                         {"length", "killwords", "end", "leeway"}));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t length, bound.Integer(0, 255));
  NIBBLE_ASSIGN_OR_RETURN(const std::string_view end, bound.Text(2, "..."));
  NIBBLE_RETURN_IF_ERROR(interpreter.ChargeText(end.size()));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t leeway, bound.Integer(3, 5));
  NIBBLE_ASSIGN_OR_RETURN(std::string text, interpreter.ToString(input));
  const int64_t num_end = NumChars(end);
  if (length < num_end || leeway < 0) {
    return InvalidArgument("truncate: expected length >= {}, got {}", num_end, length);
  }
  if (NumChars(text) - length <= leeway) return interpreter.MakeString(std::move(text));
  text.resize(ByteOffset(text, length - num_end));
  if (!bound.Truth(1, false)) {
    const size_t space = text.rfind(' ');
    if (space != std::string::npos) text.resize(space);
  }
  text += end;
  return interpreter.MakeString(std::move(text));
}

Result WordCount(Interpreter& interpreter, const Value& input, const Args&) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, interpreter.ToString(input));
  NIBBLE_RETURN_IF_ERROR(interpreter.ChargeWalk(text));
  int64_t words = 0;
  bool inside = false;
  for (std::string_view rest = text; !rest.empty();) {
    size_t length = 0;
    const char32_t point = FrontChar(rest, &length);
    // The runs of \w+ of Python's regular expressions.
    const bool word = point == '_' || IsLetter(point) || IsDecimalDigit(point);
    if (word && !inside) ++words;
    inside = word;
    rest.remove_prefix(length);
  }
  return Value(words);
}

std::string UrlEncodeText(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<uint8_t>(c);
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       std::string_view("_.-~/").find(c) != std::string_view::npos;
    if (plain) {
      out.push_back(c);
    } else {
      constexpr std::string_view kHex = "0123456789ABCDEF";
      out.push_back('%');
      out.push_back(kHex[byte >> 4]);
      out.push_back(kHex[byte & 15]);
    }
  }
  return out;
}

Result String(Interpreter& interpreter, const Value& input, const Args&) {
  if (input.IsString()) return input;
  NIBBLE_ASSIGN_OR_RETURN(std::string text, interpreter.ToString(input));
  return Value(std::move(text));
}

Result Safe(Interpreter& interpreter, const Value& input, const Args&) {
  NIBBLE_ASSIGN_OR_RETURN(std::string text, interpreter.ToString(input));
  return Value(std::move(text), true);
}

Result Escape(Interpreter& interpreter, const Value& input, const Args&) {
  if (input.IsString() && input.string().markup) return input;
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, interpreter.ToString(input));
  std::string escaped = EscapeHtml(text);
  NIBBLE_RETURN_IF_ERROR(interpreter.ChargeText(escaped.size()));
  return Value(std::move(escaped), true);
}

Result ForceEscape(Interpreter& interpreter, const Value& input, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(std::string text, interpreter.ToString(input));
  return Escape(interpreter, Value(std::move(text)), args);
}

constexpr Filter kFilters[] = {
    {"capitalize", MapText<Capitalize>},
    {"center", Center},
    {"e", Escape},
    {"escape", Escape},
    {"forceescape", ForceEscape},
    {"format", Format},
    {"indent", Indent},
    {"lower", MapText<ToLower>},
    {"replace", Replace},
    {"safe", Safe},
    {"string", String},
    {"title", MapText<JinjaTitle>},
    {"trim", Trim},
    {"truncate", Truncate},
    {"upper", MapText<ToUpper>},
    {"urlencode", MapText<UrlEncodeText>},
    {"wordcount", WordCount},
};

}  // namespace

std::span<const Filter> TextFilters() { return kFilters; }

}  // namespace nibble::server::jinja
