// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The functions a template finds without being given them.
#include <ctime>

#include "fmt/format.h"

#include "server/chat/jinja/arguments.h"
#include "server/chat/jinja/objects.h"
#include "server/chat/jinja/operators.h"

namespace nibble::server::jinja {
namespace {

constexpr int64_t kMaxRange = 100'000;  // of Jinja's sandbox

absl::StatusOr<Value> RaiseException(Interpreter& interpreter, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "raise_exception", 1, {"message"}));
  NIBBLE_ASSIGN_OR_RETURN(const std::string message, interpreter.ToString(*bound[0]));
  interpreter.SetRaised();
  return InvalidArgument("{}", message);
}

absl::StatusOr<Value> Range(Interpreter& interpreter, const Args& args) {
  if (args.positional.empty() || args.positional.size() > 3 || !args.named.empty()) {
    return InvalidArgument("range expected 1 to 3 arguments, got {}", args.positional.size());
  }
  int64_t numbers[3] = {0, 0, 1};
  for (size_t index = 0; index < args.positional.size(); ++index) {
    const Value& value = args.positional[index];
    NIBBLE_RETURN_IF_ERROR(RequireDefined(value));
    if (!value.IsInteger()) {
      return InvalidArgument("'{}' object cannot be interpreted as an integer", value.TypeName());
    }
    numbers[args.positional.size() == 1 ? 1 : index] = value.integer();
  }
  const auto [start, stop, step] = numbers;
  if (step == 0) return InvalidArgument("range() arg 3 must not be zero");
  std::vector<Value> items;
  for (int64_t at = start; step > 0 ? at < stop : at > stop;) {
    if (static_cast<int64_t>(items.size()) >= kMaxRange) {
      return InvalidArgument("Range too big. The sandbox blocks ranges larger than {}.", kMaxRange);
    }
    items.emplace_back(at);
    if (__builtin_add_overflow(at, step, &at)) break;
  }
  return interpreter.MakeSequence(SequenceKind::kRange, std::move(items));
}

// The entries that dict(...) and namespace(...) are called with.
absl::StatusOr<std::vector<std::pair<Value, Value>>> Entries(Interpreter& interpreter,
                                                             const Args& args) {
  std::vector<std::pair<Value, Value>> entries;
  if (args.positional.size() > 1) {
    return InvalidArgument("dict expected at most 1 argument, got {}", args.positional.size());
  }
  if (!args.positional.empty()) {
    const Value& source = args.positional[0];
    NIBBLE_RETURN_IF_ERROR(RequireDefined(source));
    if (source.dict() != nullptr) {
      NIBBLE_RETURN_IF_ERROR(
          interpreter.Charge(static_cast<int64_t>(source.dict()->entries.size())));
      entries = source.dict()->entries;
    } else {
      NIBBLE_ASSIGN_OR_RETURN(const std::vector<Value> pairs, interpreter.Iterate(source));
      for (const Value& pair : pairs) {
        NIBBLE_ASSIGN_OR_RETURN(std::vector<Value> parts, interpreter.Iterate(pair));
        if (parts.size() != 2) {
          return InvalidArgument("dictionary update sequence element has length {}; 2 is required",
                                 parts.size());
        }
        entries.emplace_back(std::move(parts[0]), std::move(parts[1]));
      }
    }
  }
  for (const auto& [name, value] : args.named) entries.emplace_back(Value(name), value);
  return entries;
}

absl::StatusOr<Value> MakeDictFunction(Interpreter& interpreter, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(auto entries, Entries(interpreter, args));
  return interpreter.MakeDictionary(std::move(entries));
}

absl::StatusOr<Value> MakeNamespaceFunction(Interpreter& interpreter, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(auto entries, Entries(interpreter, args));
  Namespace names;
  for (auto& [name, value] : entries) {
    NIBBLE_RETURN_IF_ERROR(interpreter.Charge(name.weight()));
    if (name.IsString()) names.attributes[name.text()] = std::move(value);
  }
  return interpreter.MakeNamespace(std::move(names));
}

// joiner(", "): nothing at the first call, the separator after.
class Joiner : public Object {
 public:
  explicit Joiner(Value separator) : separator_(std::move(separator)) {}
  std::string TypeName() const override { return "Joiner"; }
  bool IsCallable() const override { return true; }
  int depth() const override { return 1 + separator_.depth(); }
  absl::StatusOr<Value> Call(Interpreter& interpreter, const Args&) const override {
    if (used_) return separator_;
    used_ = true;
    return interpreter.MakeString("");
  }

 private:
  const Value separator_;
  mutable bool used_ = false;
};

absl::StatusOr<Value> MakeJoiner(Interpreter& interpreter, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "joiner", 0, {"sep"}));
  const Value separator = bound.Has(0) ? *bound[0] : Value(std::string(", "));
  return interpreter.MakeObject(std::make_shared<const Joiner>(separator));
}

class Cycler : public Object, public std::enable_shared_from_this<Cycler> {
 public:
  explicit Cycler(std::vector<Value> items)
      : items_(std::move(items)), depth_(1 + MaxDepth(items_)) {}
  std::string TypeName() const override { return "Cycler"; }
  bool IsCallable() const override { return false; }
  int depth() const override { return depth_; }
  std::optional<Value> GetAttribute(Interpreter&, std::string_view name) const override;
  Value Next() const {
    const Value& current = items_[at_];
    at_ = (at_ + 1) % items_.size();
    return current;
  }
  void Reset() const { at_ = 0; }

 private:
  const std::vector<Value> items_;
  const int depth_;
  mutable size_t at_ = 0;
};

class CyclerMethod : public Object {
 public:
  CyclerMethod(std::shared_ptr<const Cycler> cycler, bool next)
      : cycler_(std::move(cycler)), next_(next) {}
  std::string TypeName() const override { return "method"; }
  bool IsCallable() const override { return true; }
  int depth() const override { return 1 + cycler_->depth(); }
  absl::StatusOr<Value> Call(Interpreter&, const Args&) const override {
    if (next_) return cycler_->Next();
    cycler_->Reset();
    return Value(None{});
  }

 private:
  const std::shared_ptr<const Cycler> cycler_;
  const bool next_;
};

std::optional<Value> Cycler::GetAttribute(Interpreter&, std::string_view name) const {
  if (name == "current") return items_[at_];
  if (name != "next" && name != "reset") return std::nullopt;
  return Value(std::shared_ptr<const Object>(
      std::make_shared<const CyclerMethod>(shared_from_this(), name == "next")));
}

absl::StatusOr<Value> MakeCycler(Interpreter& interpreter, const Args& args) {
  if (args.positional.empty()) return InvalidArgument("at least one item has to be provided");
  NIBBLE_RETURN_IF_ERROR(interpreter.Charge(static_cast<int64_t>(args.positional.size())));
  return interpreter.MakeObject(std::make_shared<const Cycler>(args.positional));
}

// The time of the rendering in UTC, so that every rank and every replay tells the same.
absl::StatusOr<Value> StrftimeNow(Interpreter& interpreter, const Args& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "strftime_now", 1, {"format"}));
  NIBBLE_ASSIGN_OR_RETURN(const std::string_view format, bound.Text(0, ""));
  constexpr size_t kMaxFormat = 256;
  if (format.size() > kMaxFormat) {
    return InvalidArgument("strftime_now: a format of {} bytes, the limit is {}", format.size(),
                           kMaxFormat);
  }
  const auto now = static_cast<std::time_t>(interpreter.now_unix_seconds());
  std::tm parts{};
  if (gmtime_r(&now, &parts) == nullptr) {
    return InvalidArgument("strftime_now: {} seconds is no date", interpreter.now_unix_seconds());
  }
  std::string out;
  for (size_t at = 0; at < format.size(); ++at) {
    if (format[at] != '%') {
      out.push_back(format[at]);
      continue;
    }
    NIBBLE_RETURN_IF_ERROR(interpreter.Charge(1));
    // One directive at a time: no width or flag can make strftime write without bound.
    std::string directive = "%";
    if (at + 1 < format.size() && format[at + 1] == '-') directive += format[++at];
    if (at + 1 >= format.size()) {
      out += directive;
      break;
    }
    directive += format[++at];
    if (directive.back() == 'f') {
      out += "000000";
      continue;
    }
    if (std::string_view("aAbBcdDeFgGhHIjklmMnprRsStTuUVwWxXyYzZCP%").find(directive.back()) ==
        std::string_view::npos) {
      return InvalidArgument("strftime_now: unknown directive {}", directive);
    }
    // A naive Python datetime has no zone to print.
    if (directive.back() == 'z' || directive.back() == 'Z') continue;
    char buffer[128];
    out.append(buffer, std::strftime(buffer, sizeof(buffer), directive.c_str(), &parts));
  }
  return interpreter.MakeString(std::move(out));
}

}  // namespace

std::optional<Value> FindGlobal(std::string_view name) {
  static constexpr std::pair<std::string_view, Function> kFunctions[] = {
      {"cycler", MakeCycler},
      {"dict", MakeDictFunction},
      {"joiner", MakeJoiner},
      {"namespace", MakeNamespaceFunction},
      {"raise_exception", RaiseException},
      {"range", Range},
      {"strftime_now", StrftimeNow},
  };
  for (const auto& [known, function] : kFunctions) {
    if (known != name) continue;
    return Value(std::shared_ptr<const Object>(std::make_shared<const GlobalFunction>(function)));
  }
  return std::nullopt;
}

}  // namespace nibble::server::jinja
