// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/openai/field_reader.h"

#include <utility>

#include "base/utf8.h"
#include "server/openai/api_error.h"

namespace nibble::server {
namespace {

bool IsEmpty(const nlohmann::json& value) {
  if (value.is_string()) return value.get_ref<const std::string&>().empty();
  return value.is_structured() && value.empty();
}

// nullopt: not an integer, or one beyond 64 bits.
std::optional<int64_t> AsInt64(const nlohmann::json& value) {
  if (!value.is_number_integer()) return std::nullopt;
  if (value.is_number_unsigned() &&
      value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return std::nullopt;
  }
  return value.get<int64_t>();
}

}  // namespace

std::string Shown(const std::string& text) {
  constexpr size_t kMax = 100;
  if (text.size() <= kMax) return text;
  return text.substr(0, CompleteUtf8Prefix(std::string_view(text).substr(0, kMax))) + "...";
}

std::string_view DescribeType(const nlohmann::json& value) {
  switch (value.type()) {
    case nlohmann::json::value_t::null:
      return "null";
    case nlohmann::json::value_t::object:
      return "an object";
    case nlohmann::json::value_t::array:
      return "a list";
    case nlohmann::json::value_t::string:
      return "a string";
    case nlohmann::json::value_t::boolean:
      return "a boolean";
    case nlohmann::json::value_t::number_integer:
    case nlohmann::json::value_t::number_unsigned:
      return "an integer";
    case nlohmann::json::value_t::number_float:
      return "a number";
    default:
      return "something else";
  }
}

absl::StatusOr<std::vector<int32_t>> ReadTokenIds(const nlohmann::json& value, size_t max_count,
                                                  int64_t vocab_size) {
  if (!value.is_array())
    return InvalidArgument("want a list of token ids, got {}", DescribeType(value));
  if (value.size() > max_count) {
    return InvalidArgument("{} token ids, the limit is {}", value.size(), max_count);
  }
  std::vector<int32_t> ids;
  ids.reserve(value.size());
  for (size_t i = 0; i < value.size(); ++i) {
    const std::optional<int64_t> id = AsInt64(value[i]);
    if (!id.has_value()) {
      return InvalidArgument("element {} is {}, want a token id", i, DescribeType(value[i]));
    }
    if (*id < 0 || *id >= vocab_size) {
      return InvalidArgument("token id {} is outside 0..{}", *id, vocab_size - 1);
    }
    ids.push_back(static_cast<int32_t>(*id));
  }
  return ids;
}

FieldReader::FieldReader(const nlohmann::json& object, std::string prefix, Unknown unknown)
    : object_(object), prefix_(std::move(prefix)), unknown_(unknown) {
  if (object_.is_object()) return;
  status_ = InvalidArgument("want a JSON object, got {}", DescribeType(object_));
  if (prefix_.empty()) return;  // the body itself
  const std::string name = prefix_.substr(0, prefix_.size() - 1);
  status_ = WithParam(Annotate(status_, name), name);
}

void FieldReader::Fail(const std::string& name, absl::Status status) {
  if (!status_.ok()) return;
  const std::string full = FullName(name);
  status_ = WithParam(Annotate(status, full), full);
}

const nlohmann::json* FieldReader::Get(const std::string& name) {
  read_.insert(name);
  if (!status_.ok()) return nullptr;
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

std::optional<bool> FieldReader::Bool(const std::string& name) {
  const nlohmann::json* value = Get(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) {
    Fail(name, InvalidArgument("want true or false, got {}", DescribeType(*value)));
    return std::nullopt;
  }
  return value->get<bool>();
}

std::optional<int64_t> FieldReader::Integer(const std::string& name, int64_t low, int64_t high) {
  const nlohmann::json* value = Get(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number_integer()) {
    // The number itself helps ("16.5"), other values could be anything.
    Fail(name,
         InvalidArgument("want an integer, got {}",
                         value->is_number() ? value->dump() : std::string(DescribeType(*value))));
    return std::nullopt;
  }
  const std::optional<int64_t> number = AsInt64(*value);
  if (!number.has_value() || *number < low || *number > high) {
    const bool has_limit = high < std::numeric_limits<int64_t>::max();
    Fail(name, number.has_value() && !has_limit
                   ? InvalidArgument("{}, must be {} or more", value->dump(), low)
                   : InvalidArgument("{} is outside {}..{}", value->dump(), low, high));
    return std::nullopt;
  }
  return number;
}

std::optional<float> FieldReader::Number(const std::string& name, const NumberRange& range) {
  const nlohmann::json* value = Get(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) {
    Fail(name, InvalidArgument("want a number, got {}", DescribeType(*value)));
    return std::nullopt;
  }
  const auto number = value->get<double>();
  const bool high_enough = range.open_low ? number > range.low : number >= range.low;
  if (!high_enough || !(number <= range.high)) {
    Fail(name, InvalidArgument("{} is outside {}{}, {}]", value->dump(), range.open_low ? '(' : '[',
                               range.low, range.high));
    return std::nullopt;
  }
  // A positive number too small for a float must not become the 0 that the range shuts out.
  const auto result = static_cast<float>(number);
  return range.open_low && result <= range.low ? std::numeric_limits<float>::min() : result;
}

std::optional<std::string> FieldReader::String(const std::string& name) {
  const nlohmann::json* value = Get(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) {
    Fail(name, InvalidArgument("want a string, got {}", DescribeType(*value)));
    return std::nullopt;
  }
  return value->get<std::string>();
}

std::optional<std::vector<int32_t>> FieldReader::TokenIds(const std::string& name, size_t max_count,
                                                          int64_t vocab_size) {
  const nlohmann::json* value = Get(name);
  if (value == nullptr) return std::nullopt;
  auto ids = ReadTokenIds(*value, max_count, vocab_size);
  if (!ids.ok()) {
    Fail(name, ids.status());
    return std::nullopt;
  }
  return std::move(ids).value();
}

absl::Status FieldReader::Finish() {
  if (!status_.ok()) return status_;
  for (const auto& [name, value] : object_.items()) {
    if (read_.contains(name) || value.is_null()) continue;
    const std::string full = FullName(Shown(name));
    switch (JudgeUnreadField(name, value)) {
      case FieldFate::kHarmless:
        break;
      case FieldFate::kRefused:
        return WithParam(InvalidArgument("{}: this server does not support it{}", full,
                                         value.is_primitive() ? " with this value" : ""),
                         full);
      case FieldFate::kUnknown:
        if (unknown_ == Unknown::kMayBeEmpty && IsEmpty(value)) break;
        return WithParam(InvalidArgument("{}: there is no such field", full), full);
    }
  }
  return absl::OkStatus();
}

}  // namespace nibble::server
