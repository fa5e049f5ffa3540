// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The values a template computes with, as Python sees them. Strings, lists and dicts never change
// once made (the sandbox of transformers forbids it), so copies share them, no cycle can form, and
// the nesting depth of a container is known when it is made. A namespace is the one thing that
// changes; the interpreter that made it empties it in the end, which breaks cycles through it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"

#include "base/status.h"

namespace nibble::server::jinja {

class Value;
class Interpreter;

// Arguments of a call, a filter or a test.
struct Args {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

// What an unknown name, attribute or item yields: empty when printed, an error when used.
struct Undefined {
  std::string message;
};

struct None {};

struct String {
  std::string text;   // valid UTF-8
  int64_t num_chars;  // code points
  // Passed through `safe` or `escape` (Python's Markup): + escapes what it adds to it.
  bool markup = false;
  bool ascii() const { return num_chars == static_cast<int64_t>(text.size()); }
};

enum class SequenceKind { kList, kTuple, kGenerator, kDictKeys, kDictValues, kDictItems, kRange };

struct Sequence {
  SequenceKind kind;
  std::vector<Value> items;
  int depth;       // 1 + the deepest item
  int64_t weight;  // what a walk over all of it costs, in steps (shared parts count each time)
};

struct Dict {
  std::vector<std::pair<Value, Value>> entries;    // in insertion order
  absl::flat_hash_map<std::string, size_t> index;  // HashKey -> entry; only when there are many
  int depth = 1;
  int64_t weight = 1;

  const Value* Find(const Value& key) const;
  const Value* Find(std::string_view key) const;
};

struct Namespace {
  absl::flat_hash_map<std::string, Value> attributes;
};

// Macros, methods, global functions, the loop variable, joiners and cyclers.
class Object {
 public:
  virtual ~Object() = default;
  virtual std::string TypeName() const = 0;
  virtual bool IsCallable() const = 0;
  // 1 + the deepest value that it holds, 0 when it holds none: freeing it recurses that deep.
  virtual int depth() const { return 0; }
  // nullopt: there is no such attribute.
  virtual std::optional<Value> GetAttribute(Interpreter& interpreter, std::string_view name) const;
  virtual absl::StatusOr<Value> Call(Interpreter& interpreter, const Args& args) const;
};

class Value {
 public:
  Value() : data_(std::shared_ptr<const Undefined>()) {}
  Value(None none) : data_(none) {}       // NOLINT(google-explicit-constructor)
  Value(bool value) : data_(value) {}     // NOLINT(google-explicit-constructor)
  Value(int64_t value) : data_(value) {}  // NOLINT(google-explicit-constructor)
  Value(double value) : data_(value) {}   // NOLINT(google-explicit-constructor)
  explicit Value(std::string text, bool markup = false);
  explicit Value(std::shared_ptr<const Undefined> undefined) : data_(std::move(undefined)) {}
  explicit Value(std::shared_ptr<const String> string) : data_(std::move(string)) {}
  explicit Value(std::shared_ptr<const Sequence> sequence) : data_(std::move(sequence)) {}
  explicit Value(std::shared_ptr<const Dict> dict) : data_(std::move(dict)) {}
  explicit Value(std::shared_ptr<Namespace> names) : data_(std::move(names)) {}
  explicit Value(std::shared_ptr<const Object> object) : data_(std::move(object)) {}
  // A pointer would silently become a bool.
  template <typename T>
  Value(T*) = delete;

  bool IsUndefined() const { return Holds<std::shared_ptr<const Undefined>>(); }
  bool IsNone() const { return Holds<None>(); }
  bool IsBool() const { return Holds<bool>(); }
  bool IsString() const { return Holds<std::shared_ptr<const String>>(); }
  bool IsFloat() const { return Holds<double>(); }
  // As in Python, a bool is an integer too.
  bool IsInteger() const { return Holds<int64_t>() || IsBool(); }
  bool IsNumber() const { return IsInteger() || IsFloat(); }

  // REQUIRES the matching Is...().
  bool boolean() const { return std::get<bool>(data_); }
  int64_t integer() const { return IsBool() ? int64_t{boolean()} : std::get<int64_t>(data_); }
  double number() const {
    return IsFloat() ? std::get<double>(data_) : static_cast<double>(integer());
  }
  const std::string& text() const { return string().text; }
  const String& string() const { return *std::get<std::shared_ptr<const String>>(data_); }
  // The message of an undefined value, "" when it has none.
  std::string_view undefined_message() const;

  // nullptr when the value is something else.
  const Sequence* sequence() const { return Get<const Sequence>(); }
  const Dict* dict() const { return Get<const Dict>(); }
  Namespace* names() const { return Get<Namespace>(); }
  const Object* object() const { return Get<const Object>(); }

  int depth() const;
  // Steps that a walk over all of it costs: grows with items and text.
  int64_t weight() const;
  bool Truth() const;
  // The same object (for containers) or the same value of the same type.
  bool IsSame(const Value& other) const;
  // Python's type(value).__name__.
  std::string TypeName() const;

 private:
  template <typename T>
  bool Holds() const {
    return std::holds_alternative<T>(data_);
  }
  template <typename T>
  T* Get() const {
    const auto* pointer = std::get_if<std::shared_ptr<T>>(&data_);
    return pointer == nullptr ? nullptr : pointer->get();
  }

  std::variant<std::shared_ptr<const Undefined>, None, bool, int64_t, double,
               std::shared_ptr<const String>, std::shared_ptr<const Sequence>,
               std::shared_ptr<const Dict>, std::shared_ptr<Namespace>,
               std::shared_ptr<const Object>>
      data_;
};

// Python's ==. Containers have bounded depth, so recursion is bounded too.
bool Equal(const Value& a, const Value& b);

// Negative, zero or positive; an error for types Python does not order. `op` is for the message.
absl::StatusOr<int> Compare(const Value& a, const Value& b, std::string_view op);

// Equal hashable values have equal keys; nullopt when the value is not hashable.
std::optional<std::string> HashKey(const Value& value);

// Fills `index` and `depth` from the entries; a repeated key keeps its first place and last value.
absl::StatusOr<std::shared_ptr<const Dict>> MakeDict(std::vector<std::pair<Value, Value>> entries);

}  // namespace nibble::server::jinja
