// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/chat/jinja/interpreter.h"

#include <algorithm>

#include "fmt/format.h"
#include "nlohmann/json.hpp"

#include "server/chat/jinja/filters.h"
#include "server/chat/jinja/format.h"
#include "server/chat/jinja/objects.h"
#include "server/chat/jinja/operators.h"
#include "server/chat/jinja/text.h"

namespace nibble::server::jinja {

Value MissingFrom(const Value& value, const Value& key) {
  // The message is made whether or not anybody reads it, so it must stay cheap.
  constexpr int64_t kMaxWeight = 8;
  const std::string type = value.IsNone() ? "None" : value.TypeName() + " object";
  std::string message;
  if (key.IsString()) {
    message =
        "'" + type + "' has no attribute " +
        (key.weight() > kMaxWeight ? fmt::format("with such a name of {} bytes", key.text().size())
                                   : StringRepr(key.text()));
  } else {
    std::string written;
    if (key.weight() > kMaxWeight || !AppendRepr(key, 100, &written).ok()) written = key.TypeName();
    message = type + " has no element " + written;
  }
  return Value(std::make_shared<const Undefined>(Undefined{std::move(message)}));
}

Interpreter::~Interpreter() {
  // Namespaces can hold themselves or long chains of each other: empty them one by one.
  for (const std::shared_ptr<Namespace>& names : namespaces_) {
    auto attributes = std::move(names->attributes);
    names->attributes.clear();
  }
}

absl::Status Interpreter::Charge(int64_t steps) {
  if (__builtin_add_overflow(steps_, steps, &steps_) || steps_ > limits_.max_steps) {
    steps_ = limits_.max_steps;
    return InvalidArgument("the template takes more than the limit of {} steps", limits_.max_steps);
  }
  return steps_ < next_clock_check_ ? absl::OkStatus() : CheckClock();
}

absl::Status Interpreter::CheckClock() {
  constexpr int64_t kStepsBetween = 1024;
  next_clock_check_ = steps_ + kStepsBetween;
  const auto spent = std::chrono::duration_cast<std::chrono::milliseconds>(
      std::chrono::steady_clock::now() - start_);
  if (spent.count() < limits_.max_milliseconds) return absl::OkStatus();
  return InvalidArgument("the template takes longer than the limit of {} milliseconds",
                         limits_.max_milliseconds);
}

absl::Status Interpreter::ChargeHash(const Value& key) {
  const int64_t weight = key.weight();
  // A nested tuple's hashed text is copied once a level.
  NIBBLE_RETURN_IF_ERROR(Charge(weight * (1 + key.depth())));
  if (weight <= limits_.max_output_bytes / kBytesPerStep + 1) return absl::OkStatus();
  return InvalidArgument("a key of more than {} parts", limits_.max_output_bytes / kBytesPerStep);
}

absl::Status Interpreter::ChargeText(uint64_t bytes) {
  if (bytes > max_text_bytes()) {
    return InvalidArgument("text of {} bytes is longer than the limit of {} bytes", bytes,
                           max_text_bytes());
  }
  return Charge(static_cast<int64_t>(bytes) / kBytesPerStep);
}

absl::Status Interpreter::Enter() {
  // A nesting level of the template takes a few evaluations (a block, its expression, the call in
  // it), so a macro may still call others from the deepest place.
  constexpr int kEvaluationsPerLevel = 4;
  if (depth_ >= limits_.max_depth * kEvaluationsPerLevel) {
    return InvalidArgument("blocks, expressions and macro calls nested deeper than the limit of {}",
                           limits_.max_depth * kEvaluationsPerLevel);
  }
  ++depth_;
  return Charge(1);
}

absl::Status Interpreter::At(int line, absl::Status status) {
  if (!status.ok() && error_line_ == 0) error_line_ = line;
  return status;
}

absl::Status Interpreter::Emit(std::string_view text) {
  if (out_->size() + text.size() > max_text_bytes()) {
    return InvalidArgument("the output is longer than the limit of {} bytes", max_text_bytes());
  }
  out_->append(text);
  return Charge(static_cast<int64_t>(text.size()) / kBytesPerStep);
}

absl::StatusOr<Value> Interpreter::MakeString(std::string text) {
  NIBBLE_RETURN_IF_ERROR(ChargeText(text.size()));
  return Value(std::move(text));
}

absl::StatusOr<Value> Interpreter::MakeSequence(SequenceKind kind, std::vector<Value> items) {
  NIBBLE_RETURN_IF_ERROR(Charge(1 + static_cast<int64_t>(items.size())));
  int depth = 1;
  int64_t weight = 1;
  for (const Value& item : items) {
    depth = std::max(depth, 1 + item.depth());
    weight += item.weight();
  }
  if (depth > limits_.max_depth || weight > limits_.max_steps) {
    return InvalidArgument("a list nested deeper than {} or with more than {} parts",
                           limits_.max_depth, limits_.max_steps);
  }
  return Value(std::shared_ptr<const Sequence>(
      std::make_shared<Sequence>(Sequence{kind, std::move(items), depth, weight})));
}

absl::StatusOr<Value> Interpreter::MakeDictionary(std::vector<std::pair<Value, Value>> entries) {
  NIBBLE_RETURN_IF_ERROR(Charge(1));
  for (const auto& entry : entries) NIBBLE_RETURN_IF_ERROR(ChargeHash(entry.first));
  NIBBLE_ASSIGN_OR_RETURN(std::shared_ptr<const Dict> dict, MakeDict(std::move(entries)));
  if (dict->depth > limits_.max_depth || dict->weight > limits_.max_steps) {
    return InvalidArgument("a dict nested deeper than {} or with more than {} parts",
                           limits_.max_depth, limits_.max_steps);
  }
  return Value(std::move(dict));
}

absl::StatusOr<Value> Interpreter::MakeNamespace(Namespace names) {
  NIBBLE_RETURN_IF_ERROR(Charge(1 + static_cast<int64_t>(names.attributes.size())));
  namespaces_.push_back(std::make_shared<Namespace>(std::move(names)));
  return Value(namespaces_.back());
}

absl::StatusOr<Value> Interpreter::MakeObject(std::shared_ptr<const Object> object) {
  if (object->depth() > limits_.max_depth) {
    return InvalidArgument("objects that hold each other nested deeper than {}", limits_.max_depth);
  }
  return Value(std::move(object));
}

absl::Status Interpreter::AppendText(const Value& value, std::string* out) {
  const size_t before = out->size();
  NIBBLE_RETURN_IF_ERROR(Charge(value.weight()));
  NIBBLE_RETURN_IF_ERROR(AppendStr(value, max_text_bytes(), out));
  if (value.IsString()) return absl::OkStatus();
  return ChargeText(out->size() - before);
}

absl::StatusOr<std::string> Interpreter::ToString(const Value& value) {
  std::string out;
  NIBBLE_RETURN_IF_ERROR(AppendText(value, &out));
  return out;
}

absl::StatusOr<std::vector<Value>> Interpreter::Iterate(const Value& value) {
  std::vector<Value> items;
  if (value.IsUndefined()) return items;
  if (const Sequence* list = value.sequence()) {
    NIBBLE_RETURN_IF_ERROR(Charge(static_cast<int64_t>(list->items.size())));
    return list->items;
  }
  if (const Dict* dict = value.dict()) {
    NIBBLE_RETURN_IF_ERROR(Charge(static_cast<int64_t>(dict->entries.size())));
    for (const auto& entry : dict->entries) items.push_back(entry.first);
    return items;
  }
  if (value.IsString()) {
    NIBBLE_RETURN_IF_ERROR(Charge(value.string().num_chars));
    for (const std::string_view part : SplitChars(value.text())) {
      items.emplace_back(std::string(part));
    }
    return items;
  }
  return InvalidArgument("'{}' object is not iterable", value.TypeName());
}

absl::StatusOr<Value> Interpreter::GetAttribute(const Value& value, std::string_view name) {
  NIBBLE_RETURN_IF_ERROR(RequireDefined(value));
  NIBBLE_RETURN_IF_ERROR(Charge(static_cast<int64_t>(name.size()) / kBytesPerStep));
  if (const Namespace* names = value.names()) {
    const auto found = names->attributes.find(std::string(name));
    if (found != names->attributes.end()) return found->second;
  } else if (value.object() != nullptr) {
    if (std::optional<Value> found = value.object()->GetAttribute(*this, name)) return *found;
  } else {
    const Method method =
        value.IsString() ? FindStringMethod(name) : FindContainerMethod(value, name);
    if (method != nullptr) {
      return MakeObject(std::make_shared<const BoundMethod>(value, method));
    }
    if (IsMutator(value, name)) {
      return Value(std::make_shared<const Undefined>(
          Undefined{"access to attribute '" + std::string(name) + "' of '" + value.TypeName() +
                    "' object is unsafe."}));
    }
    const Value* item = value.dict() != nullptr ? value.dict()->Find(name) : nullptr;
    if (item != nullptr) return *item;
  }
  return MissingFrom(value, Value(std::string(name)));
}

absl::StatusOr<Value> Interpreter::GetItem(const Value& value, const Value& key) {
  NIBBLE_RETURN_IF_ERROR(RequireDefined(value));
  if (const Dict* dict = value.dict()) {
    NIBBLE_RETURN_IF_ERROR(ChargeHash(key));
    if (const Value* found = dict->Find(key)) return *found;
  } else if (key.IsInteger()) {
    const Sequence* list = value.sequence();
    const bool indexable = list != nullptr && (list->kind == SequenceKind::kList ||
                                               list->kind == SequenceKind::kTuple ||
                                               list->kind == SequenceKind::kRange);
    if (indexable || value.IsString()) {
      const int64_t length =
          indexable ? static_cast<int64_t>(list->items.size()) : value.string().num_chars;
      const int64_t given = key.integer();
      const int64_t at = given < 0 ? given + length : given;
      if (at < 0 || at >= length) return MissingFrom(value, key);
      if (indexable) return list->items[static_cast<size_t>(at)];
      return Slice(*this, value, at, at + 1, std::nullopt);
    }
  }
  if (key.IsString()) return GetAttribute(value, key.text());
  return MissingFrom(value, key);
}

absl::StatusOr<Value> Interpreter::Call(const Value& callee, const Args& args) {
  NIBBLE_RETURN_IF_ERROR(RequireDefined(callee));
  if (callee.object() == nullptr) {
    return InvalidArgument("'{}' object is not callable", callee.TypeName());
  }
  return callee.object()->Call(*this, args);
}

absl::StatusOr<Value> Interpreter::ApplyFilter(const Filter& filter, const Value& input,
                                               const Args& args) {
  NIBBLE_RETURN_IF_ERROR(Enter());
  absl::StatusOr<Value> result = filter.apply(*this, input, args);
  Leave();
  return result;
}

absl::StatusOr<Value> Interpreter::FromJson(const nlohmann::ordered_json& json, int depth) {
  if (depth > limits_.max_depth) {
    return InvalidArgument("variables nested deeper than the limit of {}", limits_.max_depth);
  }
  NIBBLE_RETURN_IF_ERROR(Charge(1));
  switch (json.type()) {
    case nlohmann::ordered_json::value_t::boolean:
      return Value(json.get<bool>());
    case nlohmann::ordered_json::value_t::number_integer:
      return Value(json.get<int64_t>());
    case nlohmann::ordered_json::value_t::number_unsigned: {
      const auto number = json.get<uint64_t>();
      if (number > static_cast<uint64_t>(INT64_MAX)) {
        return InvalidArgument("the number {} does not fit into 64 bits", number);
      }
      return Value(static_cast<int64_t>(number));
    }
    case nlohmann::ordered_json::value_t::number_float:
      return Value(json.get<double>());
    case nlohmann::ordered_json::value_t::string: {
      const auto& text = json.get_ref<const std::string&>();
      NIBBLE_RETURN_IF_ERROR(ChargeText(text.size()));
      return Value(text);
    }
    case nlohmann::ordered_json::value_t::array: {
      std::vector<Value> items;
      items.reserve(json.size());
      for (const auto& item : json) {
        NIBBLE_ASSIGN_OR_RETURN(Value value, FromJson(item, depth + 1));
        items.push_back(std::move(value));
      }
      return MakeList(std::move(items));
    }
    case nlohmann::ordered_json::value_t::object: {
      std::vector<std::pair<Value, Value>> entries;
      entries.reserve(json.size());
      for (const auto& [name, item] : json.items()) {
        NIBBLE_ASSIGN_OR_RETURN(Value value, FromJson(item, depth + 1));
        entries.emplace_back(Value(name), std::move(value));
      }
      return MakeDictionary(std::move(entries));
    }
    default:
      return Value(None{});
  }
}

absl::StatusOr<std::string> Interpreter::Render(const Template& parsed,
                                                const nlohmann::ordered_json& variables) {
  if (!variables.is_object()) return InvalidArgument("template variables must be an object");
  for (const auto& [name, json] : variables.items()) {
    NIBBLE_ASSIGN_OR_RETURN(Value value, FromJson(json, 1));
    globals_[name] = std::move(value);
  }
  std::string out;
  out_ = &out;
  const auto result = RunBody(parsed.body, std::make_shared<Scope>());
  out_ = nullptr;
  if (result.ok()) return out;
  if (raised_) return result.status();
  return InvalidArgument("chat template, line {}: {}", error_line_,
                         std::string(result.status().message()));
}

}  // namespace nibble::server::jinja
