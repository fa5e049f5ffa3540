// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Filters on single values: numbers, defaults, JSON.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "fmt/format.h"

#include "server/chat/jinja/arguments.h"
#include "server/chat/jinja/filters.h"
#include "server/chat/jinja/format.h"
#include "server/chat/jinja/interpreter.h"
#include "server/chat/jinja/operators.h"
#include "server/chat/jinja/text.h"

namespace nibble::server::jinja {
namespace {

using Result = absl::StatusOr<Value>;

Result Default(Interpreter& interpreter, const Value& input, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound,
                          Bound::Bind(args, "default", 0, {"default_value", "boolean"}));
  const bool missing = input.IsUndefined() || (bound.Truth(1, false) && !input.Truth());
  if (!missing) return input;
  if (bound.Has(0)) return *bound[0];
  return interpreter.MakeString("");
}

Result Abs(Interpreter&, const Value& input, const Args&) {
  NIBBLE_RETURN_IF_ERROR(RequireDefined(input));
  if (input.IsFloat()) return Value(std::abs(input.number()));
  if (!input.IsInteger())
    return InvalidArgument("bad operand type for abs(): '{}'", input.TypeName());
  return input.integer() < 0 ? Negate(input) : Result(Value(input.integer()));
}

// Python's int(text) and float(text): blanks around, underscores between digits.
std::string NumberText(const std::string& text) {
  std::string out;
  for (const char c : Strip(text, true, true)) {
    if (c != '_') out.push_back(c);
  }
  if (out.starts_with('+') && !out.starts_with("+-")) out.erase(0, 1);
  return out;
}

template <typename T, typename... Extra>
bool ParseNumber(const std::string& text, T* number, Extra... extra) {
  const char* end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, *number, extra...);
  return !text.empty() && result.ec == std::errc() && result.ptr == end;
}

absl::StatusOr<std::optional<int64_t>> Truncated(double number) {
  if (!std::isfinite(number)) return std::optional<int64_t>();
  if (std::abs(number) >= 9.2e18) {
    return InvalidArgument("int: {} does not fit into 64 bits", number);
  }
  return std::optional<int64_t>(static_cast<int64_t>(number));
}

Result Int(Interpreter& interpreter, const Value& input, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "int", 0, {"default", "base"}));
  NIBBLE_RETURN_IF_ERROR(RequireDefined(input));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t base, bound.Integer(1, 10));
  const Value otherwise = bound.Has(0) ? *bound[0] : Value(int64_t{0});
  if (input.IsInteger()) return Value(input.integer());
  std::optional<int64_t> number;
  if (input.IsFloat()) {
    NIBBLE_ASSIGN_OR_RETURN(number, Truncated(input.number()));
  } else if (input.IsString()) {
    if (base < 2 || base > 36) return InvalidArgument("int: base {} is not in 2..36", base);
    NIBBLE_RETURN_IF_ERROR(interpreter.ChargeWalk(input.text()));
    std::string text = NumberText(input.text());
    const bool negative = text.starts_with('-');
    const std::string prefix = base == 16 ? "0x" : (base == 8 ? "0o" : (base == 2 ? "0b" : ""));
    const size_t sign = negative ? 1 : 0;
    if (!prefix.empty() && ToLower(text.substr(sign, 2)) == prefix) text.erase(sign, 2);
    int64_t parsed = 0;
    double real = 0;
    if (ParseNumber(text, &parsed, static_cast<int>(base))) {
      number = parsed;
    } else if (ParseNumber(text, &real)) {
      NIBBLE_ASSIGN_OR_RETURN(number, Truncated(real));
    }
  }
  return number.has_value() ? Value(*number) : otherwise;
}

Result Float(Interpreter& interpreter, const Value& input, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "float", 0, {"default"}));
  NIBBLE_RETURN_IF_ERROR(RequireDefined(input));
  if (input.IsNumber()) return Value(input.number());
  if (input.IsString()) NIBBLE_RETURN_IF_ERROR(interpreter.ChargeWalk(input.text()));
  double number = 0;
  if (input.IsString() && ParseNumber(NumberText(input.text()), &number)) return Value(number);
  return bound.Has(0) ? *bound[0] : Value(0.0);
}

Result Round(Interpreter& interpreter, const Value& input, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound,
                          Bound::Bind(args, "round", 0, {"precision", "method"}));
  NIBBLE_RETURN_IF_ERROR(RequireDefined(input));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t precision, bound.Integer(0, 0));
  NIBBLE_ASSIGN_OR_RETURN(const std::string_view method, bound.Text(1, "common"));
  NIBBLE_RETURN_IF_ERROR(
      interpreter.Charge(std::abs(std::clamp<int64_t>(precision, -300, 300)) / 16));
  if (!input.IsNumber()) {
    return InvalidArgument("type {} doesn't define __round__ method", input.TypeName());
  }
  if (precision < -300 || precision > 300) {
    return InvalidArgument("round: a precision of {} is not in -300..300", precision);
  }
  if (method == "common") {
    if (input.IsInteger() && precision >= 0) return Value(input.integer());
    if (precision >= 0) {
      // Decimal digits of the exact value, ties to even: what Python does.
      const std::string text = fmt::format("{:.{}f}", input.number(), precision);
      double rounded = input.number();
      if (std::isfinite(rounded)) ParseNumber(text, &rounded);
      return Value(rounded);
    }
    const double scale = std::pow(10.0, static_cast<double>(-precision));
    const double rounded = std::nearbyint(input.number() / scale) * scale;
    if (input.IsFloat()) return Value(rounded);
    NIBBLE_ASSIGN_OR_RETURN(const std::optional<int64_t> whole, Truncated(rounded));
    return Value(whole.value_or(0));
  }
  if (method != "ceil" && method != "floor") {
    return InvalidArgument("round: method must be common, ceil or floor, not {}", method);
  }
  const double scale = std::pow(10.0, static_cast<double>(precision));
  const double scaled = input.number() * scale;
  return Value((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale);
}

Result ToJson(Interpreter& interpreter, const Value& input, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(
      const Bound bound,
      Bound::Bind(args, "tojson", 0, {"ensure_ascii", "indent", "separators", "sort_keys"}));
  JsonStyle style;
  style.ensure_ascii = bound.Truth(0, false);
  style.sort_keys = bound.Truth(3, false);
  if (bound.Has(1) && !bound[1]->IsNone()) {
    style.pretty = true;
    style.item_separator = ",";
    if (bound[1]->IsString()) {
      NIBBLE_ASSIGN_OR_RETURN(style.indent, interpreter.ToString(*bound[1]));
    } else {
      NIBBLE_ASSIGN_OR_RETURN(const int64_t width, bound.Integer(1, 0));
      constexpr int64_t kMaxIndent = 1000;
      if (width > kMaxIndent) {
        return InvalidArgument("tojson: an indent of {}, the limit is {}", width, kMaxIndent);
      }
      style.indent.assign(static_cast<size_t>(std::max<int64_t>(width, 0)), ' ');
    }
  }
  if (bound.Has(2) && !bound[2]->IsNone()) {
    const Sequence* pair = bound[2]->sequence();
    if (pair == nullptr || pair->items.size() != 2 || !pair->items[0].IsString() ||
        !pair->items[1].IsString()) {
      return InvalidArgument("tojson: separators must be two strings");
    }
    NIBBLE_ASSIGN_OR_RETURN(style.item_separator, interpreter.ToString(pair->items[0]));
    NIBBLE_ASSIGN_OR_RETURN(style.key_separator, interpreter.ToString(pair->items[1]));
  }
  NIBBLE_RETURN_IF_ERROR(interpreter.Charge(input.weight()));
  std::string out;
  NIBBLE_RETURN_IF_ERROR(AppendJson(input, style, interpreter.max_text_bytes(), &out));
  return interpreter.MakeString(std::move(out));
}

Result Attr(Interpreter& interpreter, const Value& input, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "attr", 1, {"name"}));
  NIBBLE_ASSIGN_OR_RETURN(const std::string_view name, bound.Text(0, ""));
  NIBBLE_RETURN_IF_ERROR(interpreter.ChargeHash(*bound[0]));
  // Only attributes, never items: a dict's own keys are not found.
  if (input.dict() != nullptr && input.dict()->Find(name) != nullptr) {
    return MissingFrom(input, *bound[0]);
  }
  return interpreter.GetAttribute(input, name);
}

constexpr Filter kFilters[] = {
    {"abs", Abs},     {"attr", Attr}, {"d", Default},   {"default", Default},
    {"float", Float}, {"int", Int},   {"round", Round}, {"tojson", ToJson},
};

}  // namespace

std::span<const Filter> ValueFilters() { return kFilters; }

}  // namespace nibble::server::jinja
