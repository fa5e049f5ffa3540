// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/chat/jinja/operators.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "server/chat/jinja/format.h"
#include "server/chat/jinja/interpreter.h"
#include "server/chat/jinja/text.h"

namespace nibble::server::jinja {
namespace {

absl::Status OutOfRange(std::string_view op, int64_t a, int64_t b) {
  return InvalidArgument("{} {} {} does not fit into 64 bits", a, std::string(op), b);
}

absl::StatusOr<Value> IntegerPower(int64_t base, int64_t exponent) {
  if (exponent < 0) {
    if (base == 0) return InvalidArgument("0.0 cannot be raised to a negative power");
    return Value(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  int64_t result = 1;
  int64_t square = base;
  for (int64_t left = exponent; left > 0; left >>= 1) {
    if ((left & 1) != 0 && __builtin_mul_overflow(result, square, &result)) {
      return OutOfRange("**", base, exponent);
    }
    if (left > 1 && __builtin_mul_overflow(square, square, &square)) {
      return OutOfRange("**", base, exponent);
    }
  }
  return Value(result);
}

absl::StatusOr<Value> IntegerArithmetic(std::string_view op, int64_t a, int64_t b) {
  int64_t result = 0;
  bool overflow = false;
  if (op == "+") {
    overflow = __builtin_add_overflow(a, b, &result);
  } else if (op == "-") {
    overflow = __builtin_sub_overflow(a, b, &result);
  } else if (op == "*") {
    overflow = __builtin_mul_overflow(a, b, &result);
  } else if (op == "**") {
    return IntegerPower(a, b);
  } else {
    if (b == 0) {
      return op == "/" ? InvalidArgument("division by zero")
                       : InvalidArgument("integer division or modulo by zero");
    }
    if (op == "/") return Value(static_cast<double>(a) / static_cast<double>(b));
    const bool lowest = a == std::numeric_limits<int64_t>::min() && b == -1;
    const int64_t remainder = lowest ? 0 : a % b;
    // Python rounds towards minus infinity; the remainder has the divisor's sign.
    const bool adjust = remainder != 0 && (remainder < 0) != (b < 0);
    if (op == "%") return Value(adjust ? remainder + b : remainder);
    overflow = lowest;
    if (!lowest) result = a / b - (adjust ? 1 : 0);
  }
  if (overflow) return OutOfRange(op, a, b);
  return Value(result);
}

absl::StatusOr<Value> FloatArithmetic(std::string_view op, double a, double b) {
  if (op == "+") return Value(a + b);
  if (op == "-") return Value(a - b);
  if (op == "*") return Value(a * b);
  if (op == "**") {
    if (a == 0 && b < 0) return InvalidArgument("0.0 cannot be raised to a negative power");
    if (a < 0 && b != std::floor(b)) return InvalidArgument("complex numbers are not supported");
    return Value(std::pow(a, b));
  }
  if (b == 0) return InvalidArgument("float division by zero");
  if (op == "/") return Value(a / b);
  double remainder = std::fmod(a, b);
  if (remainder != 0 && (remainder < 0) != (b < 0)) remainder += b;
  if (op == "%") return Value(remainder);
  return Value(std::round((a - remainder) / b));
}

absl::StatusOr<Value> Repeat(Interpreter& interpreter, const Value& value, int64_t count) {
  const auto times = static_cast<uint64_t>(std::max<int64_t>(count, 0));
  if (value.IsString()) {
    const std::string& text = value.text();
    if (text.empty() || times == 0) return interpreter.MakeString("");
    if (times > interpreter.max_text_bytes() / text.size()) {
      return InvalidArgument("a text of {} bytes repeated {} times is longer than {} bytes",
                             text.size(), times, interpreter.max_text_bytes());
    }
    NIBBLE_RETURN_IF_ERROR(interpreter.ChargeText(text.size() * times));
    std::string out;
    out.reserve(text.size() * times);
    for (uint64_t index = 0; index < times; ++index) out += text;
    return Value(std::move(out));
  }
  const Sequence& list = *value.sequence();
  uint64_t total = 0;
  if (__builtin_mul_overflow(list.items.size(), times, &total) || total > (uint64_t{1} << 40)) {
    return InvalidArgument("a list of {} items repeated {} times is too long", list.items.size(),
                           times);
  }
  NIBBLE_RETURN_IF_ERROR(interpreter.Charge(static_cast<int64_t>(total)));
  std::vector<Value> items;
  items.reserve(total);
  for (uint64_t index = 0; index < total; ++index) {
    items.push_back(list.items[index % list.items.size()]);
  }
  return interpreter.MakeSequence(list.kind, std::move(items));
}

bool IsRepeatable(const Value& value) {
  const Sequence* list = value.sequence();
  return value.IsString() || (list != nullptr && (list->kind == SequenceKind::kList ||
                                                  list->kind == SequenceKind::kTuple));
}

absl::StatusOr<Value> Add(Interpreter& interpreter, const Value& a, const Value& b) {
  if (a.IsString() && b.IsString() && a.string().markup != b.string().markup) {
    const bool plain_first = b.string().markup;
    NIBBLE_RETURN_IF_ERROR(interpreter.ChargeText(a.text().size() + b.text().size()));
    std::string escaped = EscapeHtml(plain_first ? a.text() : b.text());
    std::string out = plain_first ? escaped + b.text() : a.text() + escaped;
    NIBBLE_RETURN_IF_ERROR(interpreter.ChargeText(out.size()));
    return Value(std::move(out), true);
  }
  if (a.IsString() && b.IsString()) {
    const size_t total = a.text().size() + b.text().size();
    NIBBLE_RETURN_IF_ERROR(interpreter.ChargeText(total));
    std::string out;
    out.reserve(total);
    out += a.text();
    out += b.text();
    return Value(std::move(out), a.string().markup);
  }
  const Sequence* x = a.sequence();
  const Sequence* y = b.sequence();
  if (x != nullptr && y != nullptr && x->kind == y->kind && IsRepeatable(a)) {
    NIBBLE_RETURN_IF_ERROR(
        interpreter.Charge(static_cast<int64_t>(x->items.size() + y->items.size())));
    std::vector<Value> items;
    items.reserve(x->items.size() + y->items.size());
    items.insert(items.end(), x->items.begin(), x->items.end());
    items.insert(items.end(), y->items.begin(), y->items.end());
    return interpreter.MakeSequence(x->kind, std::move(items));
  }
  if (a.IsString() || IsRepeatable(a)) {
    return InvalidArgument("can only concatenate {} (not \"{}\") to {}", a.TypeName(), b.TypeName(),
                           a.TypeName());
  }
  return InvalidArgument("unsupported operand type(s) for +: '{}' and '{}'", a.TypeName(),
                         b.TypeName());
}

}  // namespace

absl::Status RequireDefined(const Value& value) {
  if (!value.IsUndefined()) return absl::OkStatus();
  const std::string_view message = value.undefined_message();
  return InvalidArgument("{}", message.empty() ? "the value is undefined" : message);
}

absl::StatusOr<Value> Arithmetic(Interpreter& interpreter, std::string_view op, const Value& a,
                                 const Value& b) {
  NIBBLE_RETURN_IF_ERROR(RequireDefined(a));
  if (op == "%" && a.IsString()) return FormatPercent(interpreter, a.text(), b);
  NIBBLE_RETURN_IF_ERROR(RequireDefined(b));
  if (a.IsNumber() && b.IsNumber()) {
    if (a.IsInteger() && b.IsInteger()) return IntegerArithmetic(op, a.integer(), b.integer());
    return FloatArithmetic(op, a.number(), b.number());
  }
  if (op == "+") return Add(interpreter, a, b);
  if (op == "*" && IsRepeatable(a) && b.IsInteger()) return Repeat(interpreter, a, b.integer());
  if (op == "*" && a.IsInteger() && IsRepeatable(b)) return Repeat(interpreter, b, a.integer());
  return InvalidArgument("unsupported operand type(s) for {}: '{}' and '{}'", std::string(op),
                         a.TypeName(), b.TypeName());
}

absl::StatusOr<Value> Negate(const Value& value) {
  NIBBLE_RETURN_IF_ERROR(RequireDefined(value));
  if (value.IsFloat()) return Value(-value.number());
  if (!value.IsInteger()) {
    return InvalidArgument("bad operand type for unary -: '{}'", value.TypeName());
  }
  return IntegerArithmetic("-", 0, value.integer());
}

absl::StatusOr<bool> Contains(Interpreter& interpreter, const Value& container, const Value& item) {
  if (container.IsUndefined()) return false;
  if (container.IsString()) {
    if (!item.IsString()) {
      return InvalidArgument("'in <string>' requires string as left operand, not {}",
                             item.TypeName());
    }
    NIBBLE_RETURN_IF_ERROR(interpreter.ChargeSearch(container.text(), item.text()));
    return container.text().find(item.text()) != std::string::npos;
  }
  if (const Dict* dict = container.dict()) {
    NIBBLE_RETURN_IF_ERROR(interpreter.ChargeHash(item));
    return dict->Find(item) != nullptr;
  }
  const Sequence* list = container.sequence();
  if (list == nullptr) {
    return InvalidArgument("argument of type '{}' is not iterable", container.TypeName());
  }
  for (const Value& other : list->items) {
    NIBBLE_RETURN_IF_ERROR(interpreter.ChargeCompare(other, item));
    if (Equal(other, item)) return true;
  }
  return false;
}

absl::StatusOr<Value> Slice(Interpreter& interpreter, const Value& value,
                            std::optional<int64_t> start, std::optional<int64_t> stop,
                            std::optional<int64_t> step) {
  NIBBLE_RETURN_IF_ERROR(RequireDefined(value));
  const Sequence* list = value.sequence();
  const bool sliceable = value.IsString() || IsRepeatable(value) ||
                         (list != nullptr && list->kind == SequenceKind::kRange);
  if (!sliceable) return InvalidArgument("'{}' object cannot be sliced", value.TypeName());
  const int64_t length =
      value.IsString() ? value.string().num_chars : static_cast<int64_t>(list->items.size());
  const int64_t stride = step.value_or(1);
  if (stride == 0) return InvalidArgument("slice step cannot be zero");
  // Python's slice.indices: negative positions count from the end, all are clamped.
  const int64_t lowest = stride < 0 ? -1 : 0;
  const int64_t highest = stride < 0 ? length - 1 : length;
  const auto clamp = [&](std::optional<int64_t> position, int64_t otherwise) {
    if (!position.has_value()) return otherwise;
    const int64_t at = *position < 0 ? std::max(*position, -length - 1) + length : *position;
    return std::clamp(at, lowest, highest);
  };
  const int64_t first = clamp(start, stride < 0 ? highest : lowest);
  const int64_t last = clamp(stop, stride < 0 ? lowest : highest);

  if (value.IsString() && stride == 1) {
    if (first >= last) return interpreter.MakeString("");
    const std::string& text = value.text();
    const bool ascii = value.string().ascii();
    NIBBLE_RETURN_IF_ERROR(interpreter.ChargeText(text.size()));
    const size_t from = ascii ? static_cast<size_t>(first) : ByteOffset(text, first);
    const std::string_view rest = std::string_view(text).substr(from);
    const size_t count = ascii ? static_cast<size_t>(last - first) : ByteOffset(rest, last - first);
    return Value(std::string(rest.substr(0, count)));
  }
  NIBBLE_RETURN_IF_ERROR(interpreter.Charge(length));
  const std::vector<std::string_view> chars =
      value.IsString() ? SplitChars(value.text()) : std::vector<std::string_view>();
  std::string text;
  std::vector<Value> items;
  for (int64_t at = first; stride > 0 ? at < last : at > last;) {
    if (value.IsString()) {
      text += chars[static_cast<size_t>(at)];
    } else {
      items.push_back(list->items[static_cast<size_t>(at)]);
    }
    if (__builtin_add_overflow(at, stride, &at)) break;
  }
  if (value.IsString()) return interpreter.MakeString(std::move(text));
  return interpreter.MakeSequence(list->kind, std::move(items));
}

absl::StatusOr<int64_t> Length(const Value& value) {
  if (value.IsUndefined()) return int64_t{0};
  if (value.IsString()) return value.string().num_chars;
  if (const Dict* dict = value.dict()) return static_cast<int64_t>(dict->entries.size());
  const Sequence* list = value.sequence();
  if (list == nullptr || list->kind == SequenceKind::kGenerator) {
    return InvalidArgument("object of type '{}' has no len()", value.TypeName());
  }
  return static_cast<int64_t>(list->items.size());
}

}  // namespace nibble::server::jinja
