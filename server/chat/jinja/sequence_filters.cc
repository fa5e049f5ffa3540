// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Filters on lists and dicts that need no attribute of the items.
#include <algorithm>

#include "server/chat/jinja/arguments.h"
#include "server/chat/jinja/filters.h"
#include "server/chat/jinja/interpreter.h"
#include "server/chat/jinja/objects.h"
#include "server/chat/jinja/operators.h"

namespace nibble::server::jinja {
namespace {

using Result = absl::StatusOr<Value>;

Result LengthFilter(Interpreter&, const Value& input, const Args&) {
  NIBBLE_ASSIGN_OR_RETURN(const int64_t length, Length(input));
  return Value(length);
}

Value NoItem(std::string_view which) {
  return Value(std::make_shared<const Undefined>(
      Undefined{"No " + std::string(which) + " item, sequence was empty."}));
}

Result First(Interpreter& interpreter, const Value& input, const Args&) {
  if (input.IsString() && !input.text().empty()) {
    return interpreter.GetItem(input, Value(int64_t{0}));
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<Value> items, interpreter.Iterate(input));
  return items.empty() ? NoItem("first") : items.front();
}

Result Last(Interpreter& interpreter, const Value& input, const Args&) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<Value> items, interpreter.Iterate(input));
  if (input.sequence() != nullptr && input.sequence()->kind == SequenceKind::kGenerator) {
    return InvalidArgument("'generator' object is not reversible");
  }
  return items.empty() ? NoItem("last") : items.back();
}

Result List(Interpreter& interpreter, const Value& input, const Args&) {
  NIBBLE_ASSIGN_OR_RETURN(std::vector<Value> items, interpreter.Iterate(input));
  return interpreter.MakeList(std::move(items));
}

Result Reverse(Interpreter& interpreter, const Value& input, const Args&) {
  NIBBLE_ASSIGN_OR_RETURN(std::vector<Value> items, interpreter.Iterate(input));
  std::reverse(items.begin(), items.end());
  if (!input.IsString()) {
    return interpreter.MakeSequence(SequenceKind::kGenerator, std::move(items));
  }
  std::string text;
  for (const Value& item : items) text += item.text();
  return interpreter.MakeString(std::move(text));
}

Result Items(Interpreter& interpreter, const Value& input, const Args& args) {
  if (input.IsUndefined()) return interpreter.MakeSequence(SequenceKind::kGenerator, {});
  if (input.dict() == nullptr) return InvalidArgument("Can only get item pairs from a mapping.");
  return FindContainerMethod(input, "items")(interpreter, input, args);
}

Result Batch(Interpreter& interpreter, const Value& input, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound,
                          Bound::Bind(args, "batch", 1, {"linecount", "fill_with"}));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t size, bound.Integer(0, 1));
  constexpr int64_t kMaxBatch = 100'000;
  if (size < 1 || size > kMaxBatch) {
    return InvalidArgument("batch: a size of {} is not in 1..{}", size, kMaxBatch);
  }
  NIBBLE_ASSIGN_OR_RETURN(std::vector<Value> items, interpreter.Iterate(input));
  std::vector<Value> batches;
  for (size_t at = 0; at < items.size(); at += static_cast<size_t>(size)) {
    const size_t end = std::min(at + static_cast<size_t>(size), items.size());
    std::vector<Value> batch(items.begin() + static_cast<std::ptrdiff_t>(at),
                             items.begin() + static_cast<std::ptrdiff_t>(end));
    if (bound.Has(1) && !bound[1]->IsNone()) batch.resize(static_cast<size_t>(size), *bound[1]);
    NIBBLE_ASSIGN_OR_RETURN(Value list, interpreter.MakeList(std::move(batch)));
    batches.push_back(std::move(list));
  }
  return interpreter.MakeSequence(SequenceKind::kGenerator, std::move(batches));
}

Result SliceFilter(Interpreter& interpreter, const Value& input, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound,
                          Bound::Bind(args, "slice", 1, {"slices", "fill_with"}));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t count, bound.Integer(0, 1));
  constexpr int64_t kMaxSlices = 100'000;
  if (count < 1 || count > kMaxSlices) {
    return InvalidArgument("slice: {} slices are not in 1..{}", count, kMaxSlices);
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<Value> items, interpreter.Iterate(input));
  const size_t each = items.size() / static_cast<size_t>(count);
  const size_t longer = items.size() % static_cast<size_t>(count);
  std::vector<Value> slices;
  auto at = items.begin();
  for (size_t index = 0; index < static_cast<size_t>(count); ++index) {
    const auto end = at + static_cast<std::ptrdiff_t>(each + (index < longer ? 1 : 0));
    std::vector<Value> part(at, end);
    if (bound.Has(1) && !bound[1]->IsNone() && index >= longer) part.push_back(*bound[1]);
    NIBBLE_ASSIGN_OR_RETURN(Value list, interpreter.MakeList(std::move(part)));
    slices.push_back(std::move(list));
    at = end;
  }
  return interpreter.MakeSequence(SequenceKind::kGenerator, std::move(slices));
}

constexpr Filter kFilters[] = {
    {"batch", Batch}, {"count", LengthFilter}, {"first", First},
    {"items", Items}, {"last", Last},          {"length", LengthFilter},
    {"list", List},   {"reverse", Reverse},    {"slice", SliceFilter},
};

}  // namespace

std::span<const Filter> SequenceFilters() { return kFilters; }

}  // namespace nibble::server::jinja
