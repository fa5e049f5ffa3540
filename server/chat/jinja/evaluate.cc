// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/chat/jinja/filters.h"
#include "server/chat/jinja/format.h"
#include "server/chat/jinja/interpreter.h"
#include "server/chat/jinja/objects.h"
#include "server/chat/jinja/operators.h"
#include "server/chat/jinja/tests.h"

namespace nibble::server::jinja {
namespace {

absl::StatusOr<std::optional<int64_t>> SliceBound(const Value& value) {
  if (value.IsNone()) return std::optional<int64_t>();
  if (value.IsInteger()) return std::optional<int64_t>(value.integer());
  NIBBLE_RETURN_IF_ERROR(RequireDefined(value));
  return InvalidArgument("slice indices must be integers or None, not {}", value.TypeName());
}

absl::StatusOr<bool> CompareOne(Interpreter& interpreter, std::string_view op, const Value& a,
                                const Value& b) {
  if (op == "in" || op == "not in") {
    NIBBLE_ASSIGN_OR_RETURN(const bool found, Contains(interpreter, b, a));
    return found == (op == "in");
  }
  if (op == "==" || op == "!=") {
    NIBBLE_RETURN_IF_ERROR(interpreter.ChargeCompare(a, b));
    return Equal(a, b) == (op == "==");
  }
  NIBBLE_RETURN_IF_ERROR(interpreter.ChargeOrder(a, b));
  NIBBLE_ASSIGN_OR_RETURN(const int order, Compare(a, b, op));
  if (op == "<") return order < 0;
  if (op == "<=") return order <= 0;
  if (op == ">") return order > 0;
  return order >= 0;
}

}  // namespace

absl::StatusOr<Value> Interpreter::Evaluate(const Expr& expr, Scope& scope) {
  absl::Status entered = Enter();
  if (!entered.ok()) return At(expr.line, std::move(entered));
  absl::StatusOr<Value> value = EvaluateNode(expr, scope);
  Leave();
  if (!value.ok()) return At(expr.line, value.status());
  return value;
}

absl::StatusOr<Value> Interpreter::EvaluateNode(const Expr& expr, Scope& scope) {
  switch (expr.kind) {
    case ExprKind::kLiteral:
      return expr.literal;
    case ExprKind::kName:
      return EvaluateName(expr, scope);
    case ExprKind::kList:
    case ExprKind::kTuple: {
      NIBBLE_ASSIGN_OR_RETURN(std::vector<Value> items, EvaluateAll(expr, scope));
      const bool list = expr.kind == ExprKind::kList;
      return MakeSequence(list ? SequenceKind::kList : SequenceKind::kTuple, std::move(items));
    }
    case ExprKind::kDict:
      return EvaluateDict(expr, scope);
    case ExprKind::kAttribute: {
      NIBBLE_ASSIGN_OR_RETURN(const Value base, Evaluate(*expr.children[0], scope));
      return GetAttribute(base, expr.text);
    }
    case ExprKind::kItem: {
      NIBBLE_ASSIGN_OR_RETURN(const Value base, Evaluate(*expr.children[0], scope));
      NIBBLE_ASSIGN_OR_RETURN(const Value key, Evaluate(*expr.children[1], scope));
      return GetItem(base, key);
    }
    case ExprKind::kSlice:
      return EvaluateSlice(expr, scope);
    case ExprKind::kCall: {
      NIBBLE_ASSIGN_OR_RETURN(const Value callee, Evaluate(*expr.children[0], scope));
      NIBBLE_ASSIGN_OR_RETURN(const Args args, EvaluateArguments(expr, scope));
      return Call(callee, args);
    }
    case ExprKind::kFilter:
      return EvaluateFilter(expr, scope);
    case ExprKind::kTest:
      return EvaluateTest(expr, scope);
    case ExprKind::kNegate:
    case ExprKind::kPlus: {
      NIBBLE_ASSIGN_OR_RETURN(const Value operand, Evaluate(*expr.children[0], scope));
      if (expr.kind == ExprKind::kNegate) return Negate(operand);
      NIBBLE_RETURN_IF_ERROR(RequireDefined(operand));
      if (operand.IsFloat()) return operand;
      if (operand.IsInteger()) return Value(operand.integer());
      return InvalidArgument("bad operand type for unary +: '{}'", operand.TypeName());
    }
    case ExprKind::kNot: {
      NIBBLE_ASSIGN_OR_RETURN(const Value operand, Evaluate(*expr.children[0], scope));
      return Value(!operand.Truth());
    }
    case ExprKind::kAnd:
    case ExprKind::kOr: {
      // The operand that decides is the value.
      Value value;
      for (const ExprPtr& child : expr.children) {
        NIBBLE_ASSIGN_OR_RETURN(value, Evaluate(*child, scope));
        if (value.Truth() == (expr.kind == ExprKind::kOr)) break;
      }
      return value;
    }
    case ExprKind::kArithmetic: {
      NIBBLE_ASSIGN_OR_RETURN(Value value, Evaluate(*expr.children[0], scope));
      for (size_t index = 0; index < expr.operators.size(); ++index) {
        NIBBLE_ASSIGN_OR_RETURN(const Value operand, Evaluate(*expr.children[index + 1], scope));
        NIBBLE_ASSIGN_OR_RETURN(value, Arithmetic(*this, expr.operators[index], value, operand));
      }
      return value;
    }
    case ExprKind::kConcat:
      return EvaluateConcat(expr, scope);
    case ExprKind::kCompare:
      return EvaluateCompare(expr, scope);
    case ExprKind::kConditional:
      return EvaluateConditional(expr, scope);
  }
  return Value();
}

absl::StatusOr<Value> Interpreter::EvaluateName(const Expr& expr, const Scope& scope) {
  size_t looked_at = 0;
  const Value* found = nullptr;
  for (const Scope* at = &scope; at != nullptr && found == nullptr; at = at->parent.get()) {
    for (const auto& [name, value] : at->names) {
      if (name != expr.text) continue;
      found = &value;
      break;
    }
    looked_at += 1 + at->names.size();
  }
  NIBBLE_RETURN_IF_ERROR(Charge(static_cast<int64_t>(looked_at / 16)));
  if (found != nullptr) return *found;
  const auto variable = globals_.find(expr.text);
  if (variable != globals_.end()) return variable->second;
  if (std::optional<Value> global = FindGlobal(expr.text)) return *global;
  return Value(std::make_shared<const Undefined>(Undefined{"'" + expr.text + "' is undefined"}));
}

absl::StatusOr<std::vector<Value>> Interpreter::EvaluateAll(const Expr& expr, Scope& scope) {
  std::vector<Value> values;
  values.reserve(expr.children.size());
  for (const ExprPtr& child : expr.children) {
    NIBBLE_ASSIGN_OR_RETURN(Value value, Evaluate(*child, scope));
    values.push_back(std::move(value));
  }
  return values;
}

absl::StatusOr<Value> Interpreter::EvaluateDict(const Expr& expr, Scope& scope) {
  NIBBLE_ASSIGN_OR_RETURN(std::vector<Value> values, EvaluateAll(expr, scope));
  std::vector<std::pair<Value, Value>> entries;
  for (size_t index = 0; index + 1 < values.size(); index += 2) {
    entries.emplace_back(std::move(values[index]), std::move(values[index + 1]));
  }
  return MakeDictionary(std::move(entries));
}

absl::StatusOr<Value> Interpreter::EvaluateSlice(const Expr& expr, Scope& scope) {
  NIBBLE_ASSIGN_OR_RETURN(const Value base, Evaluate(*expr.children[0], scope));
  std::optional<int64_t> bounds[3];
  for (size_t index = 0; index < 3; ++index) {
    if (expr.children[index + 1] == nullptr) continue;
    NIBBLE_ASSIGN_OR_RETURN(const Value bound, Evaluate(*expr.children[index + 1], scope));
    NIBBLE_ASSIGN_OR_RETURN(bounds[index], SliceBound(bound));
  }
  return Slice(*this, base, bounds[0], bounds[1], bounds[2]);
}

absl::StatusOr<Value> Interpreter::EvaluateCompare(const Expr& expr, Scope& scope) {
  NIBBLE_ASSIGN_OR_RETURN(Value left, Evaluate(*expr.children[0], scope));
  for (size_t index = 0; index < expr.operators.size(); ++index) {
    NIBBLE_ASSIGN_OR_RETURN(Value right, Evaluate(*expr.children[index + 1], scope));
    NIBBLE_ASSIGN_OR_RETURN(const bool holds,
                            CompareOne(*this, expr.operators[index], left, right));
    if (!holds) return Value(false);
    left = std::move(right);
  }
  return Value(true);
}

absl::StatusOr<Value> Interpreter::EvaluateConcat(const Expr& expr, Scope& scope) {
  std::string text;
  for (const ExprPtr& child : expr.children) {
    NIBBLE_ASSIGN_OR_RETURN(const Value part, Evaluate(*child, scope));
    NIBBLE_RETURN_IF_ERROR(AppendText(part, &text));
  }
  return MakeString(std::move(text));
}

absl::StatusOr<Value> Interpreter::EvaluateConditional(const Expr& expr, Scope& scope) {
  NIBBLE_ASSIGN_OR_RETURN(const Value condition, Evaluate(*expr.children[0], scope));
  if (condition.Truth()) return Evaluate(*expr.children[1], scope);
  if (expr.children[2] != nullptr) return Evaluate(*expr.children[2], scope);
  return Value(std::make_shared<const Undefined>(
      Undefined{"the inline if-expression evaluated to false and no else section was defined."}));
}

absl::StatusOr<Value> Interpreter::EvaluateFilter(const Expr& expr, Scope& scope) {
  Value input = filter_input_;
  if (expr.children[0] != nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(input, Evaluate(*expr.children[0], scope));
  }
  NIBBLE_ASSIGN_OR_RETURN(const Args args, EvaluateArguments(expr, scope));
  if (expr.filter == nullptr) return InvalidArgument("unknown filter '{}'", expr.text);
  return expr.filter->apply(*this, input, args);
}

absl::StatusOr<Value> Interpreter::EvaluateTest(const Expr& expr, Scope& scope) {
  NIBBLE_ASSIGN_OR_RETURN(const Value input, Evaluate(*expr.children[0], scope));
  NIBBLE_ASSIGN_OR_RETURN(const Args args, EvaluateArguments(expr, scope));
  if (expr.test == nullptr) return InvalidArgument("unknown test '{}'", expr.text);
  NIBBLE_ASSIGN_OR_RETURN(const bool holds, expr.test->holds(*this, input, args));
  return Value(holds);
}

absl::StatusOr<Args> Interpreter::EvaluateArguments(const Expr& expr, Scope& scope) {
  Args args;
  for (const Argument& argument : expr.arguments) {
    NIBBLE_ASSIGN_OR_RETURN(Value value, Evaluate(*argument.value, scope));
    switch (argument.kind) {
      case Argument::Kind::kPositional:
        args.positional.push_back(std::move(value));
        break;
      case Argument::Kind::kNamed:
        args.named.emplace_back(argument.name, std::move(value));
        break;
      case Argument::Kind::kSpread: {
        NIBBLE_ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(value));
        for (Value& item : items) args.positional.push_back(std::move(item));
        break;
      }
      case Argument::Kind::kSpreadNamed: {
        const Dict* dict = value.dict();
        if (dict == nullptr) {
          return InvalidArgument("argument after ** must be a mapping, not {}", value.TypeName());
        }
        for (const auto& [name, item] : dict->entries) {
          NIBBLE_RETURN_IF_ERROR(Charge(name.weight()));
          if (!name.IsString()) return InvalidArgument("keywords must be strings");
          args.named.emplace_back(name.text(), item);
        }
        break;
      }
    }
  }
  return args;
}

}  // namespace nibble::server::jinja
