// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Filters that look at an attribute of each item, or run a test or filter on it.
#include <algorithm>
#include <charconv>

#include "absl/container/flat_hash_set.h"

#include "server/chat/jinja/arguments.h"
#include "server/chat/jinja/filters.h"
#include "server/chat/jinja/format.h"
#include "server/chat/jinja/interpreter.h"
#include "server/chat/jinja/operators.h"
#include "server/chat/jinja/tests.h"
#include "server/chat/jinja/text.h"

namespace nibble::server::jinja {
namespace {

using Result = absl::StatusOr<Value>;

// item.a.0.b for the attribute "a.0.b"; an integer is one index. `otherwise` stands in for what is
// undefined.
Result Lookup(Interpreter& interpreter, Value item, const Value& attribute,
              const Value* otherwise = nullptr) {
  NIBBLE_RETURN_IF_ERROR(interpreter.Charge(attribute.weight()));
  std::vector<Value> path;
  if (attribute.IsString()) {
    std::string_view rest = attribute.text();
    while (true) {
      NIBBLE_RETURN_IF_ERROR(interpreter.Charge(1));
      const size_t dot = rest.find('.');
      const std::string_view part = rest.substr(0, dot);
      int64_t index = 0;
      const auto parsed = std::from_chars(part.data(), part.data() + part.size(), index);
      const bool number = !part.empty() && part.front() != '-' && parsed.ec == std::errc() &&
                          parsed.ptr == part.data() + part.size();
      path.push_back(number ? Value(index) : Value(std::string(part)));
      if (dot == std::string_view::npos) break;
      rest.remove_prefix(dot + 1);
    }
  } else {
    path.push_back(attribute);
  }
  for (const Value& key : path) {
    NIBBLE_ASSIGN_OR_RETURN(item, interpreter.GetItem(item, key));
    if (item.IsUndefined() && otherwise != nullptr) item = *otherwise;
  }
  return item;
}

Args Rest(const Args& args, size_t skipped) {
  Args rest;
  rest.named = args.named;
  rest.positional.assign(args.positional.begin() +
                             static_cast<std::ptrdiff_t>(std::min(skipped, args.positional.size())),
                         args.positional.end());
  return rest;
}

// Jinja reads whatever is false (none, "", undefined) as no items, in map and select.
absl::StatusOr<std::vector<Value>> IterateUnlessFalse(Interpreter& interpreter,
                                                      const Value& input) {
  if (!input.Truth()) return std::vector<Value>();
  return interpreter.Iterate(input);
}

Result Map(Interpreter& interpreter, const Value& input, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<Value> items, IterateUnlessFalse(interpreter, input));
  std::vector<Value> mapped;
  if (args.positional.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(const Bound bound,
                            Bound::Bind(args, "map", 1, {"attribute", "default"}));
    for (const Value& item : items) {
      NIBBLE_ASSIGN_OR_RETURN(Value value, Lookup(interpreter, item, *bound[0], bound[1]));
      mapped.push_back(std::move(value));
    }
    return interpreter.MakeSequence(SequenceKind::kGenerator, std::move(mapped));
  }
  if (!args.positional[0].IsString()) return InvalidArgument("map needs the name of a filter");
  const Filter* filter = FindFilter(args.positional[0].text());
  if (filter == nullptr) {
    return InvalidArgument("unknown filter '{}'", args.positional[0].text());
  }
  NIBBLE_RETURN_IF_ERROR(
      interpreter.Charge(static_cast<int64_t>(args.positional.size() + args.named.size())));
  const Args rest = Rest(args, 1);
  for (const Value& item : items) {
    NIBBLE_ASSIGN_OR_RETURN(Value value, interpreter.ApplyFilter(*filter, item, rest));
    mapped.push_back(std::move(value));
  }
  return interpreter.MakeSequence(SequenceKind::kGenerator, std::move(mapped));
}

// select, reject, selectattr, rejectattr
Result Choose(Interpreter& interpreter, const Value& input, const Args& args, bool by_attribute,
              bool wanted) {
  const size_t name_at = by_attribute ? 1 : 0;
  if (by_attribute && args.positional.empty()) {
    return InvalidArgument("Missing parameter for attribute name");
  }
  const Test* test = nullptr;
  if (args.positional.size() > name_at) {
    const Value& name = args.positional[name_at];
    test = name.IsString() ? FindTest(name.text()) : nullptr;
    if (test == nullptr) {
      return InvalidArgument("unknown test '{}'", name.IsString() ? name.text() : name.TypeName());
    }
  }
  const Args rest = Rest(args, name_at + 1);
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<Value> items, IterateUnlessFalse(interpreter, input));
  std::vector<Value> chosen;
  for (const Value& item : items) {
    NIBBLE_RETURN_IF_ERROR(interpreter.Charge(1));
    Value subject = item;
    if (by_attribute) {
      NIBBLE_ASSIGN_OR_RETURN(subject, Lookup(interpreter, item, args.positional[0]));
    }
    bool holds = subject.Truth();
    if (test != nullptr) {
      NIBBLE_ASSIGN_OR_RETURN(holds, test->holds(interpreter, subject, rest));
    }
    if (holds == wanted) chosen.push_back(item);
  }
  return interpreter.MakeSequence(SequenceKind::kGenerator, std::move(chosen));
}

Result Select(Interpreter& i, const Value& v, const Args& a) {
  return Choose(i, v, a, false, true);
}
Result Reject(Interpreter& i, const Value& v, const Args& a) {
  return Choose(i, v, a, false, false);
}
Result SelectAttr(Interpreter& i, const Value& v, const Args& a) {
  return Choose(i, v, a, true, true);
}
Result RejectAttr(Interpreter& i, const Value& v, const Args& a) {
  return Choose(i, v, a, true, false);
}

struct Keyed {
  Value key;
  Value item;
};

// Items with the values they are compared by: an attribute, or several separated by commas.
absl::StatusOr<std::vector<Keyed>> WithKeys(Interpreter& interpreter, const Value& input,
                                            const Value* attribute, bool case_sensitive,
                                            const Value* otherwise = nullptr) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<Value> items, interpreter.Iterate(input));
  const auto fold = [&interpreter, case_sensitive](Value value) -> Result {
    if (!value.IsString() || case_sensitive) return value;
    NIBBLE_RETURN_IF_ERROR(interpreter.ChargeWalk(value.text()));
    return Value(ToLower(value.text()));
  };
  std::vector<Value> attributes;
  if (attribute != nullptr && attribute->IsString()) {
    NIBBLE_RETURN_IF_ERROR(interpreter.Charge(attribute->weight()));
    std::string_view rest = attribute->text();
    for (size_t comma = rest.find(','); comma != std::string_view::npos; comma = rest.find(',')) {
      NIBBLE_RETURN_IF_ERROR(interpreter.Charge(1));
      attributes.emplace_back(std::string(rest.substr(0, comma)));
      rest.remove_prefix(comma + 1);
    }
    attributes.emplace_back(std::string(rest));
  } else if (attribute != nullptr && !attribute->IsNone()) {
    attributes.push_back(*attribute);
  }
  std::vector<Keyed> keyed;
  for (const Value& item : items) {
    std::vector<Value> keys;
    for (const Value& name : attributes) {
      NIBBLE_ASSIGN_OR_RETURN(Value key, Lookup(interpreter, item, name, otherwise));
      NIBBLE_ASSIGN_OR_RETURN(key, fold(std::move(key)));
      keys.push_back(std::move(key));
    }
    NIBBLE_ASSIGN_OR_RETURN(Value key, attributes.empty() ? fold(item) : Result(keys[0]));
    if (keys.size() > 1) {
      NIBBLE_ASSIGN_OR_RETURN(key, interpreter.MakeList(std::move(keys)));
    }
    NIBBLE_RETURN_IF_ERROR(interpreter.Charge(key.weight()));
    keyed.push_back({std::move(key), item});
  }
  return keyed;
}

absl::Status SortByKey(Interpreter& interpreter, std::vector<Keyed>* keyed, bool reverse) {
  absl::Status failed;
  std::stable_sort(keyed->begin(), keyed->end(), [&](const Keyed& a, const Keyed& b) {
    if (!failed.ok()) return false;  // a sort cannot be stopped
    failed = interpreter.ChargeOrder(a.key, b.key);
    if (!failed.ok()) return false;
    const absl::StatusOr<int> order = Compare(a.key, b.key, "<");
    if (!order.ok()) failed = order.status();
    return order.ok() && (reverse ? *order > 0 : *order < 0);
  });
  return failed;
}

std::vector<Value> ItemsOf(std::vector<Keyed> keyed) {
  std::vector<Value> items;
  items.reserve(keyed.size());
  for (Keyed& entry : keyed) items.push_back(std::move(entry.item));
  return items;
}

Result Sort(Interpreter& interpreter, const Value& input, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound,
                          Bound::Bind(args, "sort", 0, {"reverse", "case_sensitive", "attribute"}));
  NIBBLE_ASSIGN_OR_RETURN(std::vector<Keyed> keyed,
                          WithKeys(interpreter, input, bound[2], bound.Truth(1, false)));
  NIBBLE_RETURN_IF_ERROR(SortByKey(interpreter, &keyed, bound.Truth(0, false)));
  return interpreter.MakeList(ItemsOf(std::move(keyed)));
}

Result DictSort(Interpreter& interpreter, const Value& input, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound,
                          Bound::Bind(args, "dictsort", 0, {"case_sensitive", "by", "reverse"}));
  NIBBLE_ASSIGN_OR_RETURN(const std::string_view by, bound.Text(1, "key"));
  NIBBLE_RETURN_IF_ERROR(RequireDefined(input));
  if (input.dict() == nullptr) return InvalidArgument("dictsort needs a mapping");
  if (by != "key" && by != "value") {
    return InvalidArgument("You can only sort by either \"key\" or \"value\"");
  }
  NIBBLE_RETURN_IF_ERROR(interpreter.Charge(input.weight()));
  std::vector<Keyed> keyed;
  for (const auto& [name, value] : input.dict()->entries) {
    NIBBLE_ASSIGN_OR_RETURN(Value pair,
                            interpreter.MakeSequence(SequenceKind::kTuple, {name, value}));
    const Value& key = by == "key" ? name : value;
    const bool fold = key.IsString() && !bound.Truth(0, false);
    if (fold) NIBBLE_RETURN_IF_ERROR(interpreter.ChargeWalk(key.text()));
    keyed.push_back({fold ? Value(ToLower(key.text())) : key, std::move(pair)});
  }
  NIBBLE_RETURN_IF_ERROR(SortByKey(interpreter, &keyed, bound.Truth(2, false)));
  return interpreter.MakeList(ItemsOf(std::move(keyed)));
}

Result Unique(Interpreter& interpreter, const Value& input, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound,
                          Bound::Bind(args, "unique", 0, {"case_sensitive", "attribute"}));
  NIBBLE_ASSIGN_OR_RETURN(std::vector<Keyed> keyed,
                          WithKeys(interpreter, input, bound[1], bound.Truth(0, false)));
  absl::flat_hash_set<std::string> seen;
  std::vector<Value> items;
  for (Keyed& entry : keyed) {
    NIBBLE_RETURN_IF_ERROR(interpreter.ChargeHash(entry.key));
    std::optional<std::string> hash = HashKey(entry.key);
    if (!hash.has_value()) return InvalidArgument("unhashable type: '{}'", entry.key.TypeName());
    if (seen.insert(*std::move(hash)).second) items.push_back(std::move(entry.item));
  }
  return interpreter.MakeSequence(SequenceKind::kGenerator, std::move(items));
}

Result Extreme(Interpreter& interpreter, const Value& input, const Args& args, int sign) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound,
                          Bound::Bind(args, "min/max", 0, {"case_sensitive", "attribute"}));
  NIBBLE_ASSIGN_OR_RETURN(std::vector<Keyed> keyed,
                          WithKeys(interpreter, input, bound[1], bound.Truth(0, false)));
  if (keyed.empty()) {
    return Value(
        std::make_shared<const Undefined>(Undefined{"No aggregated item, sequence was empty."}));
  }
  const Keyed* best = &keyed.front();
  for (const Keyed& entry : keyed) {
    NIBBLE_RETURN_IF_ERROR(interpreter.ChargeOrder(entry.key, best->key));
    NIBBLE_ASSIGN_OR_RETURN(const int order, Compare(entry.key, best->key, sign > 0 ? ">" : "<"));
    if (order * sign > 0) best = &entry;
  }
  return best->item;
}
Result Max(Interpreter& i, const Value& v, const Args& a) { return Extreme(i, v, a, 1); }
Result Min(Interpreter& i, const Value& v, const Args& a) { return Extreme(i, v, a, -1); }

Result Sum(Interpreter& interpreter, const Value& input, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "sum", 0, {"attribute", "start"}));
  NIBBLE_ASSIGN_OR_RETURN(std::vector<Keyed> keyed, WithKeys(interpreter, input, bound[0], true));
  Value total = bound.Has(1) ? *bound[1] : Value(int64_t{0});
  for (const Keyed& entry : keyed) {
    if (total.IsString()) return InvalidArgument("sum() can't sum strings [use ''.join(seq)]");
    NIBBLE_ASSIGN_OR_RETURN(total, Arithmetic(interpreter, "+", total, entry.key));
  }
  return total;
}

Result Join(Interpreter& interpreter, const Value& input, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "join", 0, {"d", "attribute"}));
  NIBBLE_ASSIGN_OR_RETURN(std::vector<Keyed> keyed, WithKeys(interpreter, input, bound[1], true));
  NIBBLE_ASSIGN_OR_RETURN(std::string between,
                          bound.Has(0) ? interpreter.ToString(*bound[0]) : std::string());
  const Value separator(std::move(between));
  std::string out;
  for (size_t index = 0; index < keyed.size(); ++index) {
    if (index > 0) NIBBLE_RETURN_IF_ERROR(interpreter.AppendText(separator, &out));
    NIBBLE_RETURN_IF_ERROR(interpreter.AppendText(keyed[index].key, &out));
  }
  return interpreter.MakeString(std::move(out));
}

Result GroupBy(Interpreter& interpreter, const Value& input, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(
      const Bound bound,
      Bound::Bind(args, "groupby", 1, {"attribute", "default", "case_sensitive"}));
  NIBBLE_ASSIGN_OR_RETURN(std::vector<Keyed> keyed,
                          WithKeys(interpreter, input, bound[0], bound.Truth(2, false), bound[1]));
  NIBBLE_RETURN_IF_ERROR(SortByKey(interpreter, &keyed, false));
  std::vector<Value> groups;
  for (size_t at = 0; at < keyed.size();) {
    std::vector<Value> members;
    const size_t first = at;
    for (; at < keyed.size(); ++at) {
      NIBBLE_RETURN_IF_ERROR(interpreter.ChargeCompare(keyed[at].key, keyed[first].key));
      if (!Equal(keyed[at].key, keyed[first].key)) break;
      members.push_back(keyed[at].item);
    }
    // The name is the first member's own, before letters were folded.
    NIBBLE_ASSIGN_OR_RETURN(Value name, Lookup(interpreter, members[0], *bound[0], bound[1]));
    NIBBLE_ASSIGN_OR_RETURN(Value list, interpreter.MakeList(std::move(members)));
    NIBBLE_ASSIGN_OR_RETURN(
        Value group, interpreter.MakeSequence(SequenceKind::kTuple, {std::move(name), list}));
    groups.push_back(std::move(group));
  }
  return interpreter.MakeList(std::move(groups));
}

constexpr Filter kFilters[] = {
    {"dictsort", DictSort}, {"groupby", GroupBy},
    {"join", Join},         {"map", Map},
    {"max", Max},           {"min", Min},
    {"reject", Reject},     {"rejectattr", RejectAttr},
    {"select", Select},     {"selectattr", SelectAttr},
    {"sort", Sort},         {"sum", Sum},
    {"unique", Unique},
};

}  // namespace

std::span<const Filter> SelectFilters() { return kFilters; }

}  // namespace nibble::server::jinja
