// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Walks a parsed template. One Interpreter renders once, on one thread. Whatever makes values or
// walks them goes through it, so that work and memory are counted: a step for each evaluated node,
// loop turn and list item, one for each kBytesPerStep bytes of text copied or compared, and one for
// each kWalkedBytesPerStep bytes of text looked at character by character. No
// operation copies or walks without charging.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "nlohmann/json_fwd.hpp"

#include "server/chat/jinja/ast.h"
#include "server/chat/jinja/value.h"
#include "server/chat/template_limits.h"

namespace nibble::server::jinja {

inline constexpr int64_t kBytesPerStep = 64;
inline constexpr int64_t kWalkedBytesPerStep = 16;

// The names of one block. Found through the chain of parents.
struct Scope {
  std::shared_ptr<Scope> parent;
  std::vector<std::pair<std::string_view, Value>> names;  // views into the template
};

class Interpreter {
 public:
  Interpreter(const TemplateLimits& limits, int64_t now_unix_seconds)
      : limits_(limits), now_unix_seconds_(now_unix_seconds) {}
  ~Interpreter();
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  absl::StatusOr<std::string> Render(const Template& parsed,
                                     const nlohmann::ordered_json& variables);

  // What filters, tests and functions use.
  absl::Status Charge(int64_t steps);
  // Fails unless `bytes` more text may be made; counts them.
  absl::Status ChargeText(uint64_t bytes);
  // Of text that is looked at character by character.
  absl::Status ChargeWalk(std::string_view text) {
    return Charge(static_cast<int64_t>(text.size()) / kWalkedBytesPerStep);
  }
  // What comparing two values costs. Ordering nested lists compares the inner ones once a level.
  absl::Status ChargeCompare(const Value& a, const Value& b) {
    return Charge(std::min(a.weight(), b.weight()));
  }
  absl::Status ChargeOrder(const Value& a, const Value& b) {
    return Charge(std::min(a.weight(), b.weight()) * (1 + std::min(a.depth(), b.depth())));
  }
  // What looking for one text in another costs: each place may match nearly all of `part`.
  absl::Status ChargeSearch(std::string_view text, std::string_view part) {
    return Charge(static_cast<int64_t>((1 + text.size() / kBytesPerStep) * (1 + part.size() / 16)));
  }
  // What hashing `key` costs; refuses a key whose hashed text would be over the limit.
  absl::Status ChargeHash(const Value& key);
  size_t max_text_bytes() const { return static_cast<size_t>(limits_.max_output_bytes); }
  absl::StatusOr<Value> MakeString(std::string text);
  absl::StatusOr<Value> MakeSequence(SequenceKind kind, std::vector<Value> items);
  absl::StatusOr<Value> MakeList(std::vector<Value> items) {
    return MakeSequence(SequenceKind::kList, std::move(items));
  }
  absl::StatusOr<Value> MakeDictionary(std::vector<std::pair<Value, Value>> entries);
  absl::StatusOr<Value> MakeNamespace(Namespace names);
  // A callable or stateful thing. Its depth is limited as that of containers.
  absl::StatusOr<Value> MakeObject(std::shared_ptr<const Object> object);
  // Python's str(value).
  absl::StatusOr<std::string> ToString(const Value& value);
  // Appends str(value); fails when `out` grows over the limit of a text.
  absl::Status AppendText(const Value& value, std::string* out);
  // The items a for loop sees.
  absl::StatusOr<std::vector<Value>> Iterate(const Value& value);
  // value.name, value[key], as Jinja looks them up.
  absl::StatusOr<Value> GetAttribute(const Value& value, std::string_view name);
  absl::StatusOr<Value> GetItem(const Value& value, const Value& key);
  absl::StatusOr<Value> Call(const Value& callee, const Args& args);
  // A filter that a template names at run time (map): such filters may nest without expressions.
  absl::StatusOr<Value> ApplyFilter(const Filter& filter, const Value& input, const Args& args);
  // Runs a macro's body (also a caller's, and a recursive loop's) and returns its text.
  absl::StatusOr<Value> CallMacro(const Stmt& macro, std::shared_ptr<Scope> scope,
                                  const Args& args);
  absl::StatusOr<Value> RunLoop(const Stmt& loop, const Value& items,
                                const std::shared_ptr<Scope>& scope, int depth);

  int64_t now_unix_seconds() const { return now_unix_seconds_; }
  // Marks the error being returned as the template's own message (raise_exception).
  void SetRaised() { raised_ = true; }

 private:
  enum class Flow { kNext, kBreak, kContinue };
  using FlowResult = absl::StatusOr<Flow>;

  absl::Status Enter();
  void Leave() { --depth_; }
  absl::Status At(int line, absl::Status status);
  absl::Status CheckClock();
  // Sets a name of `scope`, which costs a look at all of them.
  absl::Status Bind(std::string_view name, Value value, Scope& scope);
  absl::Status Emit(std::string_view text);

  // Statements (statements.cc).
  FlowResult RunBody(const Stmts& body, const std::shared_ptr<Scope>& scope);
  FlowResult RunStatement(const Stmt& stmt, const std::shared_ptr<Scope>& scope);
  FlowResult RunIf(const Stmt& stmt, const std::shared_ptr<Scope>& scope);
  absl::Status RunFor(const Stmt& stmt, const Value& items, const std::shared_ptr<Scope>& scope,
                      int depth);
  absl::Status RunCallBlock(const Stmt& stmt, const std::shared_ptr<Scope>& scope);
  FlowResult RunWith(const Stmt& stmt, const std::shared_ptr<Scope>& scope);
  // The text that `body` prints.
  absl::StatusOr<std::string> Capture(const Stmts& body, const std::shared_ptr<Scope>& scope);
  absl::StatusOr<Value> CaptureThrough(const Stmt& stmt, const std::shared_ptr<Scope>& scope);
  absl::Status Assign(const Target& target, Value value, Scope& scope);
  absl::Status BindParameters(const Stmt& macro, const Args& args,
                              const std::shared_ptr<Scope>& scope);

  // Expressions (evaluate.cc).
  absl::StatusOr<Value> Evaluate(const Expr& expr, Scope& scope);
  absl::StatusOr<Value> EvaluateNode(const Expr& expr, Scope& scope);
  absl::StatusOr<Value> EvaluateName(const Expr& expr, const Scope& scope);
  absl::StatusOr<std::vector<Value>> EvaluateAll(const Expr& expr, Scope& scope);
  absl::StatusOr<Value> EvaluateDict(const Expr& expr, Scope& scope);
  absl::StatusOr<Value> EvaluateSlice(const Expr& expr, Scope& scope);
  absl::StatusOr<Value> EvaluateCompare(const Expr& expr, Scope& scope);
  absl::StatusOr<Value> EvaluateConcat(const Expr& expr, Scope& scope);
  absl::StatusOr<Value> EvaluateConditional(const Expr& expr, Scope& scope);
  absl::StatusOr<Value> EvaluateFilter(const Expr& expr, Scope& scope);
  absl::StatusOr<Value> EvaluateTest(const Expr& expr, Scope& scope);
  absl::StatusOr<Args> EvaluateArguments(const Expr& expr, Scope& scope);
  absl::StatusOr<Value> FromJson(const nlohmann::ordered_json& json, int depth);

  const TemplateLimits limits_;
  const int64_t now_unix_seconds_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  int64_t steps_ = 0;
  int64_t next_clock_check_ = 0;  // in steps
  int depth_ = 0;
  int error_line_ = 0;  // of the innermost node that failed
  bool raised_ = false;
  std::string* out_ = nullptr;
  Value filter_input_;  // what a filter without operand gets: a block's text
  absl::flat_hash_map<std::string, Value> globals_;
  std::vector<std::shared_ptr<Namespace>> namespaces_;
};

}  // namespace nibble::server::jinja
