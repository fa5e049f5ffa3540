// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The callable and stateful things a template can hold.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/chat/jinja/interpreter.h"
#include "server/chat/jinja/value.h"

namespace nibble::server::jinja {

using Function = absl::StatusOr<Value> (*)(Interpreter&, const Args&);
using Method = absl::StatusOr<Value> (*)(Interpreter&, const Value& self, const Args&);

// range, dict, namespace, ... ; nullopt when there is no such global.
std::optional<Value> FindGlobal(std::string_view name);  // globals.cc
// Methods of text, lists and dicts; nullptr when the type has none of that name.
Method FindStringMethod(std::string_view name);                        // string_methods.cc
Method FindContainerMethod(const Value& self, std::string_view name);  // container_methods.cc
// True for the methods that change a list or dict, which the sandbox refuses.
bool IsMutator(const Value& self, std::string_view name);

// Of the deepest item, 0 without items.
int MaxDepth(const std::vector<Value>& items);

class GlobalFunction : public Object {
 public:
  explicit GlobalFunction(Function function) : function_(function) {}
  std::string TypeName() const override { return "function"; }
  bool IsCallable() const override { return true; }
  absl::StatusOr<Value> Call(Interpreter& interpreter, const Args& args) const override {
    return function_(interpreter, args);
  }

 private:
  Function function_;
};

class BoundMethod : public Object {
 public:
  BoundMethod(Value self, Method method) : self_(std::move(self)), method_(method) {}
  std::string TypeName() const override { return "builtin_function_or_method"; }
  bool IsCallable() const override { return true; }
  int depth() const override { return 1 + self_.depth(); }
  absl::StatusOr<Value> Call(Interpreter& interpreter, const Args& args) const override {
    return method_(interpreter, self_, args);
  }

 private:
  Value self_;
  Method method_;
};

// A macro, or the caller of a call block. Sees the names around its definition; holds them weakly,
// because they hold the macro.
class Macro : public Object {
 public:
  Macro(const Stmt& definition, std::weak_ptr<Scope> scope)
      : definition_(definition), scope_(std::move(scope)) {}
  std::string TypeName() const override { return "Macro"; }
  bool IsCallable() const override { return true; }
  std::optional<Value> GetAttribute(Interpreter& interpreter, std::string_view name) const override;
  absl::StatusOr<Value> Call(Interpreter& interpreter, const Args& args) const override;

 private:
  const Stmt& definition_;
  std::weak_ptr<Scope> scope_;
};

// The variable `loop`. Changes while its loop runs.
class Loop : public Object, public std::enable_shared_from_this<Loop> {
 public:
  Loop(const Stmt& stmt, std::vector<Value> items, std::weak_ptr<Scope> scope, int depth)
      : stmt_(stmt),
        items_(std::move(items)),
        scope_(std::move(scope)),
        depth_(depth),
        value_depth_(1 + MaxDepth(items_)) {}
  std::string TypeName() const override { return "LoopContext"; }
  bool IsCallable() const override { return stmt_.recursive; }
  int depth() const override { return value_depth_; }
  std::optional<Value> GetAttribute(Interpreter& interpreter, std::string_view name) const override;
  absl::StatusOr<Value> Call(Interpreter& interpreter, const Args& args) const override;

  const std::vector<Value>& items() const { return items_; }
  void set_index(size_t index) { index_ = index; }
  size_t index() const { return index_; }
  // loop.changed(...): true when the arguments differ from those of the last call.
  absl::StatusOr<bool> Changed(Interpreter& interpreter, const Args& args) const;
  // The loop has ended: forgets what changed() remembers, which may be the loop itself.
  void Finish() {
    finished_ = true;
    last_changed_.reset();
  }

 private:
  const Stmt& stmt_;
  const std::vector<Value> items_;
  const std::weak_ptr<Scope> scope_;
  const int depth_;  // of recursive loops
  const int value_depth_;
  size_t index_ = 0;
  bool finished_ = false;
  mutable std::optional<std::vector<Value>> last_changed_;
};

}  // namespace nibble::server::jinja
