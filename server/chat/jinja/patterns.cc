// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Python's two ways to fill a pattern: "%s" % value and "{}".format(value). Of the second's format
// specifications only the empty one is known.
#include <algorithm>
#include <cmath>

#include "fmt/format.h"

#include "server/chat/jinja/format.h"
#include "server/chat/jinja/interpreter.h"
#include "server/chat/jinja/operators.h"
#include "server/chat/jinja/text.h"

namespace nibble::server::jinja {
namespace {

constexpr int kMaxWidth = 10'000;

// One %-conversion: flags, width, precision, type.
struct Conversion {
  bool left = false;
  bool plus = false;
  bool blank = false;
  bool zero = false;
  bool alternate = false;
  int width = 0;
  int precision = -1;
  char type = 's';
};

absl::StatusOr<int> ReadCount(std::string_view pattern, size_t* at) {
  int count = 0;
  while (*at < pattern.size() && pattern[*at] >= '0' && pattern[*at] <= '9') {
    count = count * 10 + (pattern[*at] - '0');
    if (count > kMaxWidth) {
      return InvalidArgument("a width or precision over the limit of {} in a format", kMaxWidth);
    }
    ++*at;
  }
  return count;
}

absl::StatusOr<Conversion> ReadConversion(std::string_view pattern, size_t* at) {
  Conversion conversion;
  for (; *at < pattern.size(); ++*at) {
    const char c = pattern[*at];
    if (c == '-') {
      conversion.left = true;
    } else if (c == '+') {
      conversion.plus = true;
    } else if (c == ' ') {
      conversion.blank = true;
    } else if (c == '0') {
      conversion.zero = true;
    } else if (c == '#') {
      conversion.alternate = true;
    } else {
      break;
    }
  }
  NIBBLE_ASSIGN_OR_RETURN(conversion.width, ReadCount(pattern, at));
  if (*at < pattern.size() && pattern[*at] == '.') {
    ++*at;
    NIBBLE_ASSIGN_OR_RETURN(conversion.precision, ReadCount(pattern, at));
  }
  if (*at >= pattern.size()) return InvalidArgument("incomplete format");
  conversion.type = pattern[(*at)++];
  return conversion;
}

absl::StatusOr<std::string> ConvertNumber(const Conversion& conversion, const Value& value) {
  if (!value.IsNumber()) {
    return InvalidArgument("%{} format: a number is required, not {}", conversion.type,
                           value.TypeName());
  }
  std::string digits;
  bool negative = false;
  if (std::string_view("diu").find(conversion.type) != std::string_view::npos) {
    if (value.IsFloat() && !(std::abs(value.number()) < 9.2e18)) {
      return InvalidArgument("%d format: {} does not fit into 64 bits", value.number());
    }
    const int64_t number = value.IsFloat() ? static_cast<int64_t>(value.number()) : value.integer();
    digits = fmt::format("{}", number);
  } else if (std::string_view("xXo").find(conversion.type) != std::string_view::npos) {
    if (!value.IsInteger()) {
      return InvalidArgument("%{} format: an integer is required, not {}", conversion.type,
                             value.TypeName());
    }
    digits = conversion.type == 'o'   ? fmt::format("{:o}", value.integer())
             : conversion.type == 'x' ? fmt::format("{:x}", value.integer())
                                      : fmt::format("{:X}", value.integer());
  } else {
    const int precision = conversion.precision < 0 ? 6 : conversion.precision;
    const std::string spec = fmt::format("{{:.{}{}}}", precision, conversion.type);
    digits = fmt::format(fmt::runtime(spec), value.number());
  }
  negative = digits.starts_with('-');
  std::string sign = negative ? "-" : (conversion.plus ? "+" : (conversion.blank ? " " : ""));
  if (negative) digits.erase(0, 1);
  if (conversion.alternate && (conversion.type == 'x' || conversion.type == 'X')) {
    sign += conversion.type == 'x' ? "0x" : "0X";
  }
  if (conversion.zero && !conversion.left) {
    const auto used = static_cast<int>(sign.size() + digits.size());
    digits.insert(0, static_cast<size_t>(std::max(conversion.width - used, 0)), '0');
  }
  return sign + digits;
}

absl::StatusOr<std::string> Convert(Interpreter& interpreter, const Conversion& conversion,
                                    const Value& value) {
  std::string text;
  switch (conversion.type) {
    case 's':
      NIBBLE_RETURN_IF_ERROR(interpreter.AppendText(value, &text));
      break;
    case 'r':
      NIBBLE_RETURN_IF_ERROR(interpreter.Charge(value.weight()));
      if (value.IsString()) NIBBLE_RETURN_IF_ERROR(interpreter.ChargeWalk(value.text()));
      NIBBLE_RETURN_IF_ERROR(AppendRepr(value, interpreter.max_text_bytes(), &text));
      NIBBLE_RETURN_IF_ERROR(interpreter.ChargeText(text.size()));
      break;
    case 'c':
      if (!value.IsString() || value.string().num_chars != 1) {
        return InvalidArgument("%c requires a single character");
      }
      return value.text();
    case 'd':
    case 'i':
    case 'u':
    case 'x':
    case 'X':
    case 'o':
    case 'e':
    case 'E':
    case 'f':
    case 'F':
    case 'g':
    case 'G':
      return ConvertNumber(conversion, value);
    default:
      return InvalidArgument(
          "unsupported format character '{}'",
          conversion.type >= ' ' && conversion.type <= '~' ? conversion.type : '?');
  }
  if (conversion.precision >= 0) text.resize(ByteOffset(text, conversion.precision));
  return text;
}

}  // namespace

absl::StatusOr<Value> FormatPercent(Interpreter& interpreter, std::string_view pattern,
                                    const Value& args) {
  // Flags, %% and the like take up pattern without giving text.
  NIBBLE_RETURN_IF_ERROR(interpreter.ChargeWalk(pattern));
  const Sequence* tuple = args.sequence();
  if (tuple != nullptr && tuple->kind != SequenceKind::kTuple) tuple = nullptr;
  const size_t num_args = tuple != nullptr ? tuple->items.size() : 1;
  size_t used = 0;
  std::string out;
  for (size_t at = 0; at < pattern.size();) {
    if (pattern[at] != '%') {
      out.push_back(pattern[at++]);
      continue;
    }
    NIBBLE_RETURN_IF_ERROR(interpreter.Charge(1));
    ++at;
    Value named;
    bool by_name = false;
    if (at < pattern.size() && pattern[at] == '(') {
      const size_t close = pattern.find(')', at);
      if (close == std::string_view::npos) return InvalidArgument("incomplete format key");
      if (args.dict() == nullptr) return InvalidArgument("format requires a mapping");
      const std::string_view key = pattern.substr(at + 1, close - at - 1);
      const Value* found = args.dict()->Find(key);
      if (found == nullptr) return InvalidArgument("KeyError: '{}'", std::string(key));
      named = *found;
      by_name = true;
      at = close + 1;
    }
    NIBBLE_ASSIGN_OR_RETURN(const Conversion conversion, ReadConversion(pattern, &at));
    if (conversion.type == '%') {
      out.push_back('%');
      continue;
    }
    if (!by_name) {
      if (used >= num_args) return InvalidArgument("not enough arguments for format string");
      named = tuple != nullptr ? tuple->items[used] : args;
      ++used;
    }
    // Digits are worked out one by one.
    NIBBLE_RETURN_IF_ERROR(
        interpreter.Charge((conversion.width + std::max(conversion.precision, 0)) / 16));
    NIBBLE_ASSIGN_OR_RETURN(const std::string text, Convert(interpreter, conversion, named));
    const auto missing =
        static_cast<size_t>(std::max<int64_t>(conversion.width - NumChars(text), 0));
    if (!conversion.left) out.append(missing, ' ');
    out += text;
    if (conversion.left) out.append(missing, ' ');
    if (out.size() > interpreter.max_text_bytes()) break;  // MakeString refuses it
  }
  if (used < num_args && args.dict() == nullptr && (tuple != nullptr || used == 0)) {
    return InvalidArgument("not all arguments converted during string formatting");
  }
  return interpreter.MakeString(std::move(out));
}

absl::StatusOr<Value> FormatBraces(Interpreter& interpreter, std::string_view pattern,
                                   const Args& args) {
  NIBBLE_RETURN_IF_ERROR(interpreter.ChargeWalk(pattern));
  std::string out;
  size_t next = 0;
  for (size_t at = 0; at < pattern.size();) {
    const char c = pattern[at];
    if (c != '{' && c != '}') {
      out.push_back(c);
      ++at;
      continue;
    }
    if (at + 1 < pattern.size() && pattern[at + 1] == c) {
      out.push_back(c);
      at += 2;
      continue;
    }
    const size_t close = pattern.find('}', at);
    if (c == '}' || close == std::string_view::npos) {
      return InvalidArgument("Single '{}' encountered in format string", c);
    }
    const std::string field(pattern.substr(at + 1, close - at - 1));
    NIBBLE_RETURN_IF_ERROR(interpreter.Charge(
        static_cast<int64_t>((1 + field.size() / 64) * (1 + args.named.size() / 16))));
    at = close + 1;
    const Value* value = nullptr;
    const bool number = !field.empty() && field.size() < 6 &&
                        std::all_of(field.begin(), field.end(),
                                    [](char digit) { return digit >= '0' && digit <= '9'; });
    if (field.empty() || number) {
      const size_t index = number ? static_cast<size_t>(std::stoul(field)) : next++;
      if (index >= args.positional.size()) {
        return InvalidArgument("Replacement index {} out of range for positional args", index);
      }
      value = &args.positional[index];
    } else {
      for (const auto& [name, named] : args.named) {
        if (name == field) value = &named;
      }
      if (value == nullptr) {
        return InvalidArgument("format field '{{{}}}' is neither an argument nor supported", field);
      }
    }
    NIBBLE_RETURN_IF_ERROR(interpreter.AppendText(*value, &out));
  }
  return interpreter.MakeString(std::move(out));
}

}  // namespace nibble::server::jinja
