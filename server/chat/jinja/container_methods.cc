// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Methods of lists and dicts that change nothing; those that do are refused, as in the sandbox that
// transformers renders with.
#include <algorithm>
#include <array>

#include "server/chat/jinja/arguments.h"
#include "server/chat/jinja/objects.h"

namespace nibble::server::jinja {
namespace {

using Result = absl::StatusOr<Value>;

Result Items(Interpreter& interpreter, const Value& self, const Args&) {
  std::vector<Value> items;
  for (const auto& [key, value] : self.dict()->entries) {
    NIBBLE_ASSIGN_OR_RETURN(Value pair,
                            interpreter.MakeSequence(SequenceKind::kTuple, {key, value}));
    items.push_back(std::move(pair));
  }
  return interpreter.MakeSequence(SequenceKind::kDictItems, std::move(items));
}

Result Keys(Interpreter& interpreter, const Value& self, const Args&) {
  NIBBLE_ASSIGN_OR_RETURN(std::vector<Value> keys, interpreter.Iterate(self));
  return interpreter.MakeSequence(SequenceKind::kDictKeys, std::move(keys));
}

Result Values(Interpreter& interpreter, const Value& self, const Args&) {
  NIBBLE_RETURN_IF_ERROR(interpreter.Charge(static_cast<int64_t>(self.dict()->entries.size())));
  std::vector<Value> values;
  for (const auto& entry : self.dict()->entries) values.push_back(entry.second);
  return interpreter.MakeSequence(SequenceKind::kDictValues, std::move(values));
}

Result Get(Interpreter& interpreter, const Value& self, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "get", 1, {"key", "default"}));
  NIBBLE_RETURN_IF_ERROR(interpreter.ChargeHash(*bound[0]));
  if (const Value* found = self.dict()->Find(*bound[0])) return *found;
  return bound.Has(1) ? *bound[1] : Value(None{});
}

// Values never change, so a copy is the value.
Result Copy(Interpreter&, const Value& self, const Args&) { return self; }

Result Count(Interpreter& interpreter, const Value& self, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "count", 1, {"value"}));
  int64_t count = 0;
  for (const Value& item : self.sequence()->items) {
    NIBBLE_RETURN_IF_ERROR(interpreter.ChargeCompare(item, *bound[0]));
    count += Equal(item, *bound[0]) ? 1 : 0;
  }
  return Value(count);
}

Result Index(Interpreter& interpreter, const Value& self, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "index", 1, {"value"}));
  int64_t at = 0;
  for (const Value& item : self.sequence()->items) {
    NIBBLE_RETURN_IF_ERROR(interpreter.ChargeCompare(item, *bound[0]));
    if (Equal(item, *bound[0])) return Value(at);
    ++at;
  }
  return InvalidArgument("the value is not in the list");
}

template <size_t kSize>
bool Has(const std::array<std::string_view, kSize>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

Method FindContainerMethod(const Value& self, std::string_view name) {
  if (self.dict() != nullptr) {
    if (name == "items") return Items;
    if (name == "keys") return Keys;
    if (name == "values") return Values;
    if (name == "get") return Get;
    if (name == "copy") return Copy;
    return nullptr;
  }
  const Sequence* list = self.sequence();
  const bool plain =
      list != nullptr && (list->kind == SequenceKind::kList || list->kind == SequenceKind::kTuple ||
                          list->kind == SequenceKind::kRange);
  if (!plain) return nullptr;
  if (name == "count") return Count;
  if (name == "index") return Index;
  if (name == "copy" && list->kind == SequenceKind::kList) return Copy;
  return nullptr;
}

bool IsMutator(const Value& self, std::string_view name) {
  static constexpr std::array<std::string_view, 5> kOfDict = {"clear", "pop", "popitem",
                                                              "setdefault", "update"};
  static constexpr std::array<std::string_view, 8> kOfList = {
      "append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove"};
  if (self.dict() != nullptr) return Has(kOfDict, name);
  const Sequence* list = self.sequence();
  return list != nullptr && list->kind == SequenceKind::kList && Has(kOfList, name);
}

}  // namespace nibble::server::jinja
