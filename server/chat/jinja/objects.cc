// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/chat/jinja/objects.h"

#include <algorithm>

#include "server/chat/jinja/arguments.h"

namespace nibble::server::jinja {
namespace {

// loop.cycle and loop.changed of one turn.
class LoopMethod : public Object {
 public:
  enum class Kind { kCycle, kChanged };
  LoopMethod(Kind kind, size_t index, std::shared_ptr<const Loop> loop)
      : kind_(kind), index_(index), loop_(std::move(loop)) {}
  std::string TypeName() const override { return "method"; }
  bool IsCallable() const override { return true; }
  int depth() const override { return 1 + loop_->depth(); }
  absl::StatusOr<Value> Call(Interpreter& interpreter, const Args& args) const override {
    if (kind_ == Kind::kChanged) {
      NIBBLE_ASSIGN_OR_RETURN(const bool changed, loop_->Changed(interpreter, args));
      return Value(changed);
    }
    if (args.positional.empty()) return InvalidArgument("no items for cycling given");
    return args.positional[index_ % args.positional.size()];
  }

 private:
  const Kind kind_;
  const size_t index_;
  const std::shared_ptr<const Loop> loop_;
};

Value MissingNeighbor(std::string_view which) {
  return Value(
      std::make_shared<const Undefined>(Undefined{"there is no " + std::string(which) + " item"}));
}

}  // namespace

int MaxDepth(const std::vector<Value>& items) {
  int depth = 0;
  for (const Value& item : items) depth = std::max(depth, item.depth());
  return depth;
}

std::optional<Value> Macro::GetAttribute(Interpreter&, std::string_view name) const {
  if (name == "name") return Value(definition_.text);
  return std::nullopt;
}

absl::StatusOr<Value> Macro::Call(Interpreter& interpreter, const Args& args) const {
  std::shared_ptr<Scope> scope = scope_.lock();
  if (scope == nullptr) {
    return InvalidArgument("macro '{}' is called after the block that defined it has ended",
                           definition_.text);
  }
  return interpreter.CallMacro(definition_, std::move(scope), args);
}

std::optional<Value> Loop::GetAttribute(Interpreter&, std::string_view name) const {
  const auto at = static_cast<int64_t>(index_);
  const auto length = static_cast<int64_t>(items_.size());
  if (name == "index") return Value(at + 1);
  if (name == "index0") return Value(at);
  if (name == "revindex") return Value(length - at);
  if (name == "revindex0") return Value(length - at - 1);
  if (name == "first") return Value(at == 0);
  if (name == "last") return Value(at + 1 == length);
  if (name == "length") return Value(length);
  if (name == "depth") return Value(int64_t{depth_} + 1);
  if (name == "depth0") return Value(int64_t{depth_});
  if (name == "previtem") return at == 0 ? MissingNeighbor("previous") : items_[index_ - 1];
  if (name == "nextitem") return at + 1 == length ? MissingNeighbor("next") : items_[index_ + 1];
  if (name == "cycle" || name == "changed") {
    const auto kind = name == "cycle" ? LoopMethod::Kind::kCycle : LoopMethod::Kind::kChanged;
    return Value(std::shared_ptr<const Object>(
        std::make_shared<const LoopMethod>(kind, index_, shared_from_this())));
  }
  return std::nullopt;
}

absl::StatusOr<bool> Loop::Changed(Interpreter& interpreter, const Args& args) const {
  bool same = last_changed_.has_value() && last_changed_->size() == args.positional.size();
  for (size_t index = 0; same && index < args.positional.size(); ++index) {
    const Value& before = (*last_changed_)[index];
    NIBBLE_RETURN_IF_ERROR(interpreter.ChargeCompare(before, args.positional[index]));
    same = Equal(before, args.positional[index]);
  }
  if (!finished_) last_changed_ = args.positional;
  return !same;
}

absl::StatusOr<Value> Loop::Call(Interpreter& interpreter, const Args& args) const {
  if (!stmt_.recursive) {
    return InvalidArgument("the loop must have the 'recursive' marker to be called");
  }
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "loop", 1, {"iterable"}));
  const std::shared_ptr<Scope> scope = scope_.lock();
  if (scope == nullptr) return InvalidArgument("loop() is called after its block has ended");
  return interpreter.RunLoop(stmt_, *bound[0], scope, depth_ + 1);
}

}  // namespace nibble::server::jinja
