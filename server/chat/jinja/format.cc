// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/chat/jinja/format.h"

#include <algorithm>
#include <cmath>

#include "fmt/format.h"

#include "server/chat/jinja/text.h"

namespace nibble::server::jinja {
namespace {

absl::Status CheckSize(const std::string& out, size_t max_bytes) {
  if (out.size() <= max_bytes) return absl::OkStatus();
  return InvalidArgument("text longer than the limit of {} bytes", max_bytes);
}

absl::Status AppendSequenceRepr(const Sequence& sequence, size_t max_bytes, std::string* out) {
  std::string_view open = "[";
  std::string_view close = "]";
  switch (sequence.kind) {
    case SequenceKind::kList:
      break;
    case SequenceKind::kTuple:
      open = "(";
      close = sequence.items.size() == 1 ? ",)" : ")";
      break;
    case SequenceKind::kDictKeys:
      open = "dict_keys([";
      close = "])";
      break;
    case SequenceKind::kDictValues:
      open = "dict_values([";
      close = "])";
      break;
    case SequenceKind::kDictItems:
      open = "dict_items([";
      close = "])";
      break;
    case SequenceKind::kGenerator:
      // Python prints an address here, which no template can want.
      *out += "<generator object>";
      return absl::OkStatus();
    case SequenceKind::kRange: {
      const auto& items = sequence.items;
      if (items.empty()) {
        *out += "range(0, 0)";
        return absl::OkStatus();
      }
      const int64_t step = items.size() > 1 ? items[1].integer() - items[0].integer() : 1;
      *out += fmt::format("range({}, {}", items.front().integer(), items.back().integer() + step);
      *out += step == 1 ? ")" : fmt::format(", {})", step);
      return absl::OkStatus();
    }
  }
  *out += open;
  for (size_t index = 0; index < sequence.items.size(); ++index) {
    if (index > 0) *out += ", ";
    NIBBLE_RETURN_IF_ERROR(AppendRepr(sequence.items[index], max_bytes, out));
  }
  *out += close;
  return CheckSize(*out, max_bytes);
}

// The text of a dict's key in JSON, where only scalars can be keys.
absl::StatusOr<std::string> JsonKey(const Value& key) {
  if (key.IsString()) return key.text();
  if (key.IsNone()) return "null";
  if (key.IsBool()) return key.boolean() ? "true" : "false";
  if (key.IsInteger()) return fmt::format("{}", key.integer());
  if (key.IsFloat()) return FloatRepr(key.number());
  return InvalidArgument("keys must be str, int, float, bool or None, not {}", key.TypeName());
}

class JsonWriter {
 public:
  JsonWriter(const JsonStyle& style, size_t max_bytes, std::string* out)
      : style_(style), max_bytes_(max_bytes), out_(*out) {}

  absl::Status Write(const Value& value, int level) {
    NIBBLE_RETURN_IF_ERROR(CheckSize(out_, max_bytes_));
    if (value.IsNone()) {
      out_ += "null";
    } else if (value.IsBool()) {
      out_ += value.boolean() ? "true" : "false";
    } else if (value.IsInteger()) {
      out_ += fmt::format("{}", value.integer());
    } else if (value.IsFloat()) {
      const double number = value.number();
      out_ += std::isnan(number)   ? "NaN"
              : std::isinf(number) ? (number < 0 ? "-Infinity" : "Infinity")
                                   : FloatRepr(number);
    } else if (value.IsString()) {
      AppendJsonString(value.text(), style_.ensure_ascii, &out_);
    } else if (const Dict* dict = value.dict()) {
      return WriteDict(*dict, level);
    } else if (const Sequence* list = value.sequence();
               list != nullptr &&
               (list->kind == SequenceKind::kList || list->kind == SequenceKind::kTuple)) {
      return WriteList(*list, level);
    } else {
      return InvalidArgument("Object of type {} is not JSON serializable", value.TypeName());
    }
    return absl::OkStatus();
  }

 private:
  void NewLine(int level) {
    if (!style_.pretty) return;
    out_ += '\n';
    for (int count = 0; count < level && out_.size() <= max_bytes_; ++count) out_ += style_.indent;
  }

  absl::Status WriteList(const Sequence& list, int level) {
    out_ += '[';
    for (size_t index = 0; index < list.items.size(); ++index) {
      if (index > 0) out_ += style_.item_separator;
      NewLine(level + 1);
      NIBBLE_RETURN_IF_ERROR(Write(list.items[index], level + 1));
    }
    if (!list.items.empty()) NewLine(level);
    out_ += ']';
    return CheckSize(out_, max_bytes_);
  }

  absl::Status WriteDict(const Dict& dict, int level) {
    std::vector<std::pair<std::string, const Value*>> entries;
    entries.reserve(dict.entries.size());
    for (const auto& [key, value] : dict.entries) {
      NIBBLE_ASSIGN_OR_RETURN(std::string name, JsonKey(key));
      entries.emplace_back(std::move(name), &value);
    }
    if (style_.sort_keys) {
      std::stable_sort(entries.begin(), entries.end(),
                       [](const auto& a, const auto& b) { return a.first < b.first; });
    }
    out_ += '{';
    for (size_t index = 0; index < entries.size(); ++index) {
      if (index > 0) out_ += style_.item_separator;
      NewLine(level + 1);
      AppendJsonString(entries[index].first, style_.ensure_ascii, &out_);
      out_ += style_.key_separator;
      NIBBLE_RETURN_IF_ERROR(Write(*entries[index].second, level + 1));
    }
    if (!entries.empty()) NewLine(level);
    out_ += '}';
    return CheckSize(out_, max_bytes_);
  }

  const JsonStyle& style_;
  const size_t max_bytes_;
  std::string& out_;
};

}  // namespace

absl::Status AppendStr(const Value& value, size_t max_bytes, std::string* out) {
  if (value.IsString()) {
    *out += value.text();
    return CheckSize(*out, max_bytes);
  }
  if (value.IsUndefined()) return absl::OkStatus();
  return AppendRepr(value, max_bytes, out);
}

absl::Status AppendRepr(const Value& value, size_t max_bytes, std::string* out) {
  if (value.IsUndefined()) {
    *out += "Undefined";
  } else if (value.IsNone()) {
    *out += "None";
  } else if (value.IsBool()) {
    *out += value.boolean() ? "True" : "False";
  } else if (value.IsInteger()) {
    *out += fmt::format("{}", value.integer());
  } else if (value.IsFloat()) {
    *out += FloatRepr(value.number());
  } else if (value.IsString()) {
    *out += StringRepr(value.text());
  } else if (const Sequence* sequence = value.sequence()) {
    return AppendSequenceRepr(*sequence, max_bytes, out);
  } else if (const Dict* dict = value.dict()) {
    *out += '{';
    bool first = true;
    for (const auto& [key, item] : dict->entries) {
      if (!first) *out += ", ";
      first = false;
      NIBBLE_RETURN_IF_ERROR(AppendRepr(key, max_bytes, out));
      *out += ": ";
      NIBBLE_RETURN_IF_ERROR(AppendRepr(item, max_bytes, out));
    }
    *out += '}';
  } else {
    *out += "<" + value.TypeName() + " object>";
  }
  return CheckSize(*out, max_bytes);
}

absl::Status AppendJson(const Value& value, const JsonStyle& style, size_t max_bytes,
                        std::string* out) {
  return JsonWriter(style, max_bytes, out).Write(value, 0);
}

}  // namespace nibble::server::jinja
