// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/chat/jinja/value.h"

#include <algorithm>
#include <cmath>

#include "fmt/format.h"

#include "server/chat/jinja/text.h"

namespace nibble::server::jinja {
namespace {

constexpr size_t kMinIndexedEntries = 9;  // below this a scan is as fast as a hash

int Sign(double difference) { return difference < 0 ? -1 : (difference > 0 ? 1 : 0); }

bool IsListLike(const Sequence& sequence) {
  return sequence.kind == SequenceKind::kList || sequence.kind == SequenceKind::kTuple;
}

}  // namespace

std::optional<Value> Object::GetAttribute(Interpreter&, std::string_view) const {
  return std::nullopt;
}

absl::StatusOr<Value> Object::Call(Interpreter&, const Args&) const {
  return InvalidArgument("'{}' object is not callable", TypeName());
}

Value::Value(std::string text, bool markup) {
  const int64_t num_chars = NumChars(text);
  data_ = std::shared_ptr<const String>(
      std::make_shared<const String>(String{std::move(text), num_chars, markup}));
}

std::string_view Value::undefined_message() const {
  const auto& undefined = std::get<std::shared_ptr<const Undefined>>(data_);
  return undefined == nullptr ? std::string_view() : std::string_view(undefined->message);
}

int Value::depth() const {
  if (const Sequence* list = sequence()) return list->depth;
  if (const Dict* entries = dict()) return entries->depth;
  if (const Object* held = object()) return held->depth();
  return 0;
}

int64_t Value::weight() const {
  if (const Sequence* list = sequence()) return list->weight;
  if (const Dict* entries = dict()) return entries->weight;
  return IsString() ? 1 + static_cast<int64_t>(text().size() / 64) : 1;
}

bool Value::Truth() const {
  if (IsUndefined() || IsNone()) return false;
  if (IsBool()) return boolean();
  if (IsInteger()) return integer() != 0;
  if (IsFloat()) return number() != 0;
  if (IsString()) return !text().empty();
  if (const Sequence* list = sequence()) {
    return list->kind == SequenceKind::kGenerator || !list->items.empty();
  }
  if (const Dict* entries = dict()) return !entries->entries.empty();
  return true;
}

bool Value::IsSame(const Value& other) const {
  if (data_.index() != other.data_.index()) return false;
  if (const Sequence* list = sequence()) return list == other.sequence();
  if (const Dict* entries = dict()) return entries == other.dict();
  return Equal(*this, other);
}

std::string Value::TypeName() const {
  if (IsUndefined()) return "Undefined";
  if (IsNone()) return "NoneType";
  if (IsBool()) return "bool";
  if (IsInteger()) return "int";
  if (IsFloat()) return "float";
  if (IsString()) return "str";
  if (dict() != nullptr) return "dict";
  if (names() != nullptr) return "Namespace";
  if (object() != nullptr) return object()->TypeName();
  switch (sequence()->kind) {
    case SequenceKind::kList:
      return "list";
    case SequenceKind::kTuple:
      return "tuple";
    case SequenceKind::kGenerator:
      return "generator";
    case SequenceKind::kDictKeys:
      return "dict_keys";
    case SequenceKind::kDictValues:
      return "dict_values";
    case SequenceKind::kDictItems:
      return "dict_items";
    case SequenceKind::kRange:
      return "range";
  }
  return "object";
}

const Value* Dict::Find(const Value& key) const {
  if (key.IsString()) return Find(key.text());
  if (!index.empty()) {
    const std::optional<std::string> hash = HashKey(key);
    if (!hash.has_value()) return nullptr;
    const auto found = index.find(*hash);
    return found == index.end() ? nullptr : &entries[found->second].second;
  }
  for (const auto& [name, value] : entries) {
    if (Equal(name, key)) return &value;
  }
  return nullptr;
}

const Value* Dict::Find(std::string_view key) const {
  if (!index.empty()) {
    const auto found = index.find(fmt::format("s{}", key));
    return found == index.end() ? nullptr : &entries[found->second].second;
  }
  for (const auto& [name, value] : entries) {
    if (name.IsString() && name.text() == key) return &value;
  }
  return nullptr;
}

bool Equal(const Value& a, const Value& b) {
  if (a.IsNumber() && b.IsNumber()) {
    if (a.IsInteger() && b.IsInteger()) return a.integer() == b.integer();
    return a.number() == b.number();
  }
  if (a.IsString() && b.IsString()) return a.text() == b.text();
  if (a.IsNone() || b.IsNone()) return a.IsNone() && b.IsNone();
  if (a.IsUndefined() || b.IsUndefined()) return a.IsUndefined() && b.IsUndefined();
  if (const Sequence* x = a.sequence(), *y = b.sequence(); x != nullptr && y != nullptr) {
    if (x == y) return true;
    if (x->kind != y->kind || !(IsListLike(*x) || x->kind == SequenceKind::kRange)) return false;
    return std::equal(x->items.begin(), x->items.end(), y->items.begin(), y->items.end(), Equal);
  }
  if (const Dict* x = a.dict(), *y = b.dict(); x != nullptr && y != nullptr) {
    if (x == y) return true;
    if (x->entries.size() != y->entries.size()) return false;
    return std::all_of(x->entries.begin(), x->entries.end(), [y](const auto& entry) {
      const Value* other = y->Find(entry.first);
      return other != nullptr && Equal(entry.second, *other);
    });
  }
  if (a.names() != nullptr || b.names() != nullptr) return a.names() == b.names();
  return a.object() != nullptr && a.object() == b.object();
}

absl::StatusOr<int> Compare(const Value& a, const Value& b, std::string_view op) {
  for (const Value* value : {&a, &b}) {
    if (value->IsUndefined()) return InvalidArgument("{}", value->undefined_message());
  }
  if (a.IsNumber() && b.IsNumber()) {
    if (a.IsInteger() && b.IsInteger()) {
      return a.integer() < b.integer() ? -1 : (a.integer() > b.integer() ? 1 : 0);
    }
    return Sign(a.number() - b.number());
  }
  // The order of UTF-8 bytes is the order of code points.
  if (a.IsString() && b.IsString()) return Sign(a.text().compare(b.text()));
  const Sequence* x = a.sequence();
  const Sequence* y = b.sequence();
  if (x != nullptr && y != nullptr && x->kind == y->kind && IsListLike(*x)) {
    const size_t common = std::min(x->items.size(), y->items.size());
    for (size_t index = 0; index < common; ++index) {
      if (Equal(x->items[index], y->items[index])) continue;
      return Compare(x->items[index], y->items[index], op);
    }
    return Sign(static_cast<double>(x->items.size()) - static_cast<double>(y->items.size()));
  }
  return InvalidArgument("'{}' not supported between instances of '{}' and '{}'", op, a.TypeName(),
                         b.TypeName());
}

std::optional<std::string> HashKey(const Value& value) {
  if (value.IsString()) return "s" + value.text();
  if (value.IsInteger()) return fmt::format("n{}", value.integer());
  if (value.IsFloat()) {
    const double number = value.number();
    // 1 and 1.0 are the same key.
    if (number == std::floor(number) && std::abs(number) < 9e15) {
      return fmt::format("n{}", static_cast<int64_t>(number));
    }
    return fmt::format("f{}", number);
  }
  if (value.IsNone()) return "0";
  if (value.IsUndefined()) return "u";
  if (const Namespace* names = value.names()) return fmt::format("p{}", fmt::ptr(names));
  if (const Object* object = value.object()) return fmt::format("p{}", fmt::ptr(object));
  const Sequence* tuple = value.sequence();
  if (tuple == nullptr || tuple->kind != SequenceKind::kTuple) return std::nullopt;
  std::string key = fmt::format("t{}", tuple->items.size());
  for (const Value& item : tuple->items) {
    const std::optional<std::string> part = HashKey(item);
    if (!part.has_value()) return std::nullopt;
    key += fmt::format(":{}:{}", part->size(), *part);
  }
  return key;
}

absl::StatusOr<std::shared_ptr<const Dict>> MakeDict(std::vector<std::pair<Value, Value>> entries) {
  auto dict = std::make_shared<Dict>();
  const bool indexed = entries.size() >= kMinIndexedEntries;
  for (auto& [key, value] : entries) {
    const std::optional<std::string> hash = HashKey(key);
    if (!hash.has_value()) return InvalidArgument("unhashable type: '{}'", key.TypeName());
    dict->depth = std::max({dict->depth, 1 + key.depth(), 1 + value.depth()});
    dict->weight += key.weight() + value.weight();
    size_t place = dict->entries.size();
    if (indexed) {
      place = dict->index.try_emplace(*hash, place).first->second;
    } else {
      const Value& wanted = key;  // a structured binding cannot be captured
      const auto found =
          std::find_if(dict->entries.begin(), dict->entries.end(),
                       [&wanted](const auto& entry) { return Equal(entry.first, wanted); });
      place = static_cast<size_t>(found - dict->entries.begin());
    }
    if (place < dict->entries.size()) {
      dict->entries[place].second = std::move(value);
    } else {
      dict->entries.emplace_back(std::move(key), std::move(value));
    }
  }
  return std::shared_ptr<const Dict>(std::move(dict));
}

}  // namespace nibble::server::jinja
