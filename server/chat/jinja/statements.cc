// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <algorithm>

#include "server/chat/jinja/interpreter.h"
#include "server/chat/jinja/objects.h"
#include "server/chat/jinja/operators.h"

namespace nibble::server::jinja {
namespace {

std::shared_ptr<Scope> NewScope(const std::shared_ptr<Scope>& parent) {
  auto scope = std::make_shared<Scope>();
  scope->parent = parent;
  return scope;
}

}  // namespace

absl::Status Interpreter::Bind(std::string_view name, Value value, Scope& scope) {
  NIBBLE_RETURN_IF_ERROR(Charge(static_cast<int64_t>(scope.names.size() / 16)));
  for (auto& [bound, old] : scope.names) {
    if (bound != name) continue;
    old = std::move(value);
    return absl::OkStatus();
  }
  scope.names.emplace_back(name, std::move(value));
  return absl::OkStatus();
}

Interpreter::FlowResult Interpreter::RunBody(const Stmts& body,
                                             const std::shared_ptr<Scope>& scope) {
  for (const auto& stmt : body) {
    absl::Status entered = Enter();
    if (!entered.ok()) return At(stmt->line, std::move(entered));
    FlowResult flow = RunStatement(*stmt, scope);
    Leave();
    if (!flow.ok()) return At(stmt->line, flow.status());
    if (*flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Interpreter::FlowResult Interpreter::RunStatement(const Stmt& stmt,
                                                  const std::shared_ptr<Scope>& scope) {
  switch (stmt.kind) {
    case StmtKind::kText:
      NIBBLE_RETURN_IF_ERROR(Emit(stmt.text));
      return Flow::kNext;
    case StmtKind::kOutput: {
      NIBBLE_ASSIGN_OR_RETURN(const Value value, Evaluate(*stmt.expr, *scope));
      if (value.IsString()) {
        NIBBLE_RETURN_IF_ERROR(Emit(value.text()));
      } else {
        NIBBLE_ASSIGN_OR_RETURN(const std::string text, ToString(value));
        NIBBLE_RETURN_IF_ERROR(Emit(text));
      }
      return Flow::kNext;
    }
    case StmtKind::kSet: {
      NIBBLE_ASSIGN_OR_RETURN(Value value, Evaluate(*stmt.expr, *scope));
      NIBBLE_RETURN_IF_ERROR(Assign(stmt.target, std::move(value), *scope));
      return Flow::kNext;
    }
    case StmtKind::kSetBlock: {
      NIBBLE_ASSIGN_OR_RETURN(Value value, CaptureThrough(stmt, scope));
      NIBBLE_RETURN_IF_ERROR(Assign(stmt.target, std::move(value), *scope));
      return Flow::kNext;
    }
    case StmtKind::kIf:
      return RunIf(stmt, scope);
    case StmtKind::kFor: {
      NIBBLE_ASSIGN_OR_RETURN(const Value items, Evaluate(*stmt.expr, *scope));
      NIBBLE_RETURN_IF_ERROR(RunFor(stmt, items, scope, 0));
      return Flow::kNext;
    }
    case StmtKind::kMacro:
      NIBBLE_RETURN_IF_ERROR(
          Bind(stmt.text,
               Value(std::shared_ptr<const Object>(std::make_shared<const Macro>(stmt, scope))),
               *scope));
      return Flow::kNext;
    case StmtKind::kCallBlock:
      NIBBLE_RETURN_IF_ERROR(RunCallBlock(stmt, scope));
      return Flow::kNext;
    case StmtKind::kFilterBlock: {
      NIBBLE_ASSIGN_OR_RETURN(const Value value, CaptureThrough(stmt, scope));
      NIBBLE_ASSIGN_OR_RETURN(const std::string text, ToString(value));
      NIBBLE_RETURN_IF_ERROR(Emit(text));
      return Flow::kNext;
    }
    case StmtKind::kWith:
      return RunWith(stmt, scope);
    case StmtKind::kBlock:
      return RunBody(stmt.body, NewScope(scope));
    case StmtKind::kBreak:
      return Flow::kBreak;
    case StmtKind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNext;
}

Interpreter::FlowResult Interpreter::RunIf(const Stmt& stmt, const std::shared_ptr<Scope>& scope) {
  for (const Branch& branch : stmt.branches) {
    NIBBLE_ASSIGN_OR_RETURN(const Value condition, Evaluate(*branch.condition, *scope));
    if (condition.Truth()) return RunBody(branch.body, scope);
  }
  return RunBody(stmt.orelse, scope);
}

absl::Status Interpreter::RunFor(const Stmt& stmt, const Value& iterable,
                                 const std::shared_ptr<Scope>& scope, int depth) {
  NIBBLE_ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(iterable));
  if (stmt.condition != nullptr) {
    std::vector<Value> kept;
    for (Value& item : items) {
      const std::shared_ptr<Scope> inner = NewScope(scope);
      NIBBLE_RETURN_IF_ERROR(Assign(stmt.target, item, *inner));
      NIBBLE_ASSIGN_OR_RETURN(const Value keep, Evaluate(*stmt.condition, *inner));
      if (keep.Truth()) kept.push_back(std::move(item));
    }
    items = std::move(kept);
  }
  if (items.empty()) return RunBody(stmt.orelse, NewScope(scope)).status();
  const auto loop = std::make_shared<Loop>(stmt, std::move(items), scope, depth);
  NIBBLE_ASSIGN_OR_RETURN(const Value loop_value, MakeObject(loop));
  absl::Status status;
  for (size_t index = 0; status.ok() && index < loop->items().size(); ++index) {
    loop->set_index(index);
    const std::shared_ptr<Scope> inner = NewScope(scope);
    status = Charge(1);
    if (status.ok()) status = Bind("loop", loop_value, *inner);
    if (status.ok()) status = Assign(stmt.target, loop->items()[index], *inner);
    if (!status.ok()) break;
    const FlowResult flow = RunBody(stmt.body, inner);
    status = flow.status();
    if (status.ok() && *flow == Flow::kBreak) break;
  }
  loop->Finish();
  return status;
}

absl::StatusOr<Value> Interpreter::RunLoop(const Stmt& loop, const Value& items,
                                           const std::shared_ptr<Scope>& scope, int depth) {
  std::string text;
  std::string* const outer = std::exchange(out_, &text);
  const absl::Status status = RunFor(loop, items, scope, depth);
  out_ = outer;
  NIBBLE_RETURN_IF_ERROR(status);
  return MakeString(std::move(text));
}

absl::StatusOr<std::string> Interpreter::Capture(const Stmts& body,
                                                 const std::shared_ptr<Scope>& scope) {
  std::string text;
  std::string* const outer = std::exchange(out_, &text);
  const absl::Status status = RunBody(body, scope).status();
  out_ = outer;
  NIBBLE_RETURN_IF_ERROR(status);
  return text;
}

absl::StatusOr<Value> Interpreter::CaptureThrough(const Stmt& stmt,
                                                  const std::shared_ptr<Scope>& scope) {
  const std::shared_ptr<Scope> inner = NewScope(scope);
  NIBBLE_ASSIGN_OR_RETURN(std::string text, Capture(stmt.body, inner));
  NIBBLE_ASSIGN_OR_RETURN(Value value, MakeString(std::move(text)));
  if (stmt.expr == nullptr) return value;
  Value outer = std::exchange(filter_input_, std::move(value));
  absl::StatusOr<Value> filtered = Evaluate(*stmt.expr, *inner);
  filter_input_ = std::move(outer);
  return filtered;
}

Interpreter::FlowResult Interpreter::RunWith(const Stmt& stmt,
                                             const std::shared_ptr<Scope>& scope) {
  const std::shared_ptr<Scope> inner = NewScope(scope);
  for (size_t index = 0; index < stmt.targets.size(); ++index) {
    NIBBLE_ASSIGN_OR_RETURN(Value value, Evaluate(*stmt.parameters[index].value, *scope));
    NIBBLE_RETURN_IF_ERROR(Assign(stmt.targets[index], std::move(value), *inner));
  }
  return RunBody(stmt.body, inner);
}

absl::Status Interpreter::RunCallBlock(const Stmt& stmt, const std::shared_ptr<Scope>& scope) {
  NIBBLE_ASSIGN_OR_RETURN(const Value callee, Evaluate(*stmt.expr->children[0], *scope));
  NIBBLE_ASSIGN_OR_RETURN(Args args, EvaluateArguments(*stmt.expr, *scope));
  args.named.emplace_back(
      "caller", Value(std::shared_ptr<const Object>(std::make_shared<const Macro>(stmt, scope))));
  NIBBLE_ASSIGN_OR_RETURN(const Value value, Call(callee, args));
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, ToString(value));
  return Emit(text);
}

absl::Status Interpreter::Assign(const Target& target, Value value, Scope& scope) {
  if (target.kind == Target::Kind::kName) {
    return Bind(target.name, std::move(value), scope);
  }
  if (target.kind == Target::Kind::kAttribute) {
    for (const Scope* at = &scope; at != nullptr; at = at->parent.get()) {
      NIBBLE_RETURN_IF_ERROR(Charge(static_cast<int64_t>(at->names.size() / 16)));
      for (const auto& [name, bound] : at->names) {
        if (name != target.name) continue;
        if (bound.names() == nullptr) {
          return InvalidArgument("cannot assign attribute on non-namespace object");
        }
        bound.names()->attributes[target.attribute] = std::move(value);
        return absl::OkStatus();
      }
    }
    return InvalidArgument("'{}' is undefined; only a namespace's attributes can be set",
                           target.name);
  }
  NIBBLE_RETURN_IF_ERROR(RequireDefined(value));
  NIBBLE_ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(value));
  if (items.size() < target.items.size()) {
    return InvalidArgument("not enough values to unpack (expected {}, got {})", target.items.size(),
                           items.size());
  }
  if (items.size() > target.items.size()) {
    return InvalidArgument("too many values to unpack (expected {})", target.items.size());
  }
  for (size_t index = 0; index < items.size(); ++index) {
    NIBBLE_RETURN_IF_ERROR(Assign(target.items[index], std::move(items[index]), scope));
  }
  return absl::OkStatus();
}

absl::Status Interpreter::BindParameters(const Stmt& macro, const Args& args,
                                         const std::shared_ptr<Scope>& scope) {
  const size_t num_positional = std::min(args.positional.size(), macro.parameters.size());
  std::vector<bool> used(args.named.size(), false);
  for (size_t index = 0; index < macro.parameters.size(); ++index) {
    const Parameter& parameter = macro.parameters[index];
    Value value(std::make_shared<const Undefined>(
        Undefined{"parameter '" + parameter.name + "' was not provided"}));
    NIBBLE_RETURN_IF_ERROR(Charge(1 + static_cast<int64_t>(args.named.size() / 16)));
    bool given = index < num_positional;
    if (given) value = args.positional[index];
    for (size_t named = 0; !given && named < args.named.size(); ++named) {
      if (args.named[named].first != parameter.name) continue;
      value = args.named[named].second;
      used[named] = true;
      given = true;
    }
    if (!given && parameter.value != nullptr) {
      NIBBLE_ASSIGN_OR_RETURN(value, Evaluate(*parameter.value, *scope));
    }
    NIBBLE_RETURN_IF_ERROR(Bind(parameter.name, std::move(value), *scope));
  }
  std::vector<std::pair<Value, Value>> rest;
  for (size_t named = 0; named < args.named.size(); ++named) {
    if (used[named]) continue;
    if (args.named[named].first == "caller") {
      NIBBLE_RETURN_IF_ERROR(Bind("caller", args.named[named].second, *scope));
    } else {
      rest.emplace_back(Value(args.named[named].first), args.named[named].second);
    }
  }
  const size_t num_extra = args.positional.size() - num_positional;
  if (!macro.catches_named && !rest.empty()) {
    return InvalidArgument("macro '{}' takes no keyword argument '{}'", macro.text,
                           rest.front().first.text());
  }
  if (!macro.catches_positional && num_extra > 0) {
    return InvalidArgument("macro '{}' takes not more than {} argument(s)", macro.text,
                           macro.parameters.size());
  }
  if (macro.catches_named) {
    NIBBLE_ASSIGN_OR_RETURN(Value named, MakeDictionary(std::move(rest)));
    NIBBLE_RETURN_IF_ERROR(Bind("kwargs", std::move(named), *scope));
  }
  if (macro.catches_positional) {
    std::vector<Value> extra(args.positional.end() - static_cast<std::ptrdiff_t>(num_extra),
                             args.positional.end());
    NIBBLE_ASSIGN_OR_RETURN(Value more, MakeSequence(SequenceKind::kTuple, std::move(extra)));
    NIBBLE_RETURN_IF_ERROR(Bind("varargs", std::move(more), *scope));
  }
  return absl::OkStatus();
}

absl::StatusOr<Value> Interpreter::CallMacro(const Stmt& macro, std::shared_ptr<Scope> scope,
                                             const Args& args) {
  const std::shared_ptr<Scope> inner = NewScope(scope);
  NIBBLE_RETURN_IF_ERROR(BindParameters(macro, args, inner));
  NIBBLE_ASSIGN_OR_RETURN(std::string text, Capture(macro.body, inner));
  return MakeString(std::move(text));
}

}  // namespace nibble::server::jinja
