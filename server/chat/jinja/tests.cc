// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/chat/jinja/tests.h"

#include "server/chat/jinja/filters.h"
#include "server/chat/jinja/interpreter.h"
#include "server/chat/jinja/operators.h"
#include "server/chat/jinja/text.h"

namespace nibble::server::jinja {
namespace {

using Result = absl::StatusOr<bool>;

// The one argument of a test that compares.
absl::StatusOr<Value> Operand(const Args& args) {
  if (args.positional.size() == 1 && args.named.empty()) return args.positional[0];
  return InvalidArgument("the test takes one argument, got {}",
                         args.positional.size() + args.named.size());
}

Result CompareWith(Interpreter& interpreter, const Value& input, const Args& args,
                   std::string_view op) {
  NIBBLE_ASSIGN_OR_RETURN(const Value other, Operand(args));
  if (op == "==" || op == "!=") {
    NIBBLE_RETURN_IF_ERROR(interpreter.ChargeCompare(input, other));
    return Equal(input, other) == (op == "==");
  }
  NIBBLE_RETURN_IF_ERROR(interpreter.ChargeOrder(input, other));
  NIBBLE_ASSIGN_OR_RETURN(const int order, Compare(input, other, op));
  if (op == "<") return order < 0;
  if (op == "<=") return order <= 0;
  if (op == ">") return order > 0;
  return order >= 0;
}

Result IsEq(Interpreter& i, const Value& v, const Args& a) { return CompareWith(i, v, a, "=="); }
Result IsNe(Interpreter& i, const Value& v, const Args& a) { return CompareWith(i, v, a, "!="); }
Result IsLt(Interpreter& i, const Value& v, const Args& a) { return CompareWith(i, v, a, "<"); }
Result IsLe(Interpreter& i, const Value& v, const Args& a) { return CompareWith(i, v, a, "<="); }
Result IsGt(Interpreter& i, const Value& v, const Args& a) { return CompareWith(i, v, a, ">"); }
Result IsGe(Interpreter& i, const Value& v, const Args& a) { return CompareWith(i, v, a, ">="); }

Result IsIn(Interpreter& interpreter, const Value& value, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Value container, Operand(args));
  return Contains(interpreter, container, value);
}

Result IsSameAs(Interpreter& interpreter, const Value& value, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Value other, Operand(args));
  NIBBLE_RETURN_IF_ERROR(interpreter.ChargeCompare(value, other));
  return value.IsSame(other);
}

Result IsDivisibleBy(Interpreter& interpreter, const Value& value, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Value divisor, Operand(args));
  NIBBLE_ASSIGN_OR_RETURN(const Value rest, Arithmetic(interpreter, "%", value, divisor));
  return !rest.Truth();
}

Result Parity(Interpreter& interpreter, const Value& value, int64_t wanted) {
  NIBBLE_ASSIGN_OR_RETURN(const Value rest, Arithmetic(interpreter, "%", value, Value(int64_t{2})));
  return Equal(rest, Value(wanted));
}
Result IsOdd(Interpreter& i, const Value& value, const Args&) { return Parity(i, value, 1); }
Result IsEven(Interpreter& i, const Value& value, const Args&) { return Parity(i, value, 0); }

Result IsSequence(Interpreter&, const Value& value, const Args&) {
  const Sequence* list = value.sequence();
  const bool indexable =
      list != nullptr && (list->kind == SequenceKind::kList || list->kind == SequenceKind::kTuple ||
                          list->kind == SequenceKind::kRange);
  // By Jinja's rule, whatever has a length and takes an index: dicts and undefined values too.
  return indexable || value.IsString() || value.dict() != nullptr || value.IsUndefined();
}

Result IsIterable(Interpreter&, const Value& value, const Args&) {
  return value.sequence() != nullptr || value.IsString() || value.dict() != nullptr ||
         value.IsUndefined();
}

// Python's islower and isupper: at least one cased letter, and none of the other case.
Result HasCase(Interpreter& interpreter, const Value& value, bool upper) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, interpreter.ToString(value));
  NIBBLE_RETURN_IF_ERROR(interpreter.ChargeWalk(text));
  bool cased = false;
  for (std::string_view rest = text; !rest.empty();) {
    size_t length = 0;
    const char32_t point = FrontChar(rest, &length);
    if (upper ? IsLowerCase(point) : IsUpperCase(point)) return false;
    cased = cased || IsUpperCase(point) || IsLowerCase(point);
    rest.remove_prefix(length);
  }
  return cased;
}
Result IsLower(Interpreter& i, const Value& value, const Args&) { return HasCase(i, value, false); }
Result IsUpper(Interpreter& i, const Value& value, const Args&) { return HasCase(i, value, true); }

Result IsFilter(Interpreter&, const Value& value, const Args&) {
  return value.IsString() && FindFilter(value.text()) != nullptr;
}
Result IsTest(Interpreter&, const Value& value, const Args&) {
  return value.IsString() && FindTest(value.text()) != nullptr;
}

template <auto Predicate>
Result Is(Interpreter&, const Value& value, const Args&) {
  return Predicate(value);
}

constexpr Test kTests[] = {
    {"!=", IsNe},
    {"<", IsLt},
    {"<=", IsLe},
    {"==", IsEq},
    {">", IsGt},
    {">=", IsGe},
    {"boolean", Is<[](const Value& v) { return v.IsBool(); }>},
    {"callable",
     Is<[](const Value& v) { return v.object() != nullptr && v.object()->IsCallable(); }>},
    {"defined", Is<[](const Value& v) { return !v.IsUndefined(); }>},
    {"divisibleby", IsDivisibleBy},
    {"eq", IsEq},
    {"equalto", IsEq},
    {"even", IsEven},
    {"false", Is<[](const Value& v) { return v.IsBool() && !v.boolean(); }>},
    {"filter", IsFilter},
    {"float", Is<[](const Value& v) { return v.IsFloat(); }>},
    {"ge", IsGe},
    {"greaterthan", IsGt},
    {"gt", IsGt},
    {"in", IsIn},
    {"integer", Is<[](const Value& v) { return v.IsInteger() && !v.IsBool(); }>},
    {"iterable", IsIterable},
    {"le", IsLe},
    {"lessthan", IsLt},
    {"lower", IsLower},
    {"lt", IsLt},
    {"mapping", Is<[](const Value& v) { return v.dict() != nullptr; }>},
    {"ne", IsNe},
    {"none", Is<[](const Value& v) { return v.IsNone(); }>},
    {"number", Is<[](const Value& v) { return v.IsNumber(); }>},
    {"odd", IsOdd},
    {"sameas", IsSameAs},
    {"sequence", IsSequence},
    {"string", Is<[](const Value& v) { return v.IsString(); }>},
    {"test", IsTest},
    {"true", Is<[](const Value& v) { return v.IsBool() && v.boolean(); }>},
    {"undefined", Is<[](const Value& v) { return v.IsUndefined(); }>},
    {"upper", IsUpper},
};

}  // namespace

const Test* FindTest(std::string_view name) {
  for (const Test& test : kTests) {
    if (test.name == name) return &test;
  }
  return nullptr;
}

}  // namespace nibble::server::jinja
