// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/config_reader.h"

#include <cmath>

#include "base/utf8.h"

namespace nibble::engine {
namespace {

constexpr size_t kMaxQuotedBytes = 80;

// JSON integers, and floats that are whole (some tools write 4096.0).
std::optional<int64_t> AsInt(const nlohmann::json& value) {
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    if (number > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
    return static_cast<int64_t>(number);
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  if (value.is_number_float()) {
    const auto number = value.get<double>();
    if (std::abs(number) < 0x1p53 && number == std::floor(number)) {
      return static_cast<int64_t>(number);
    }
  }
  return std::nullopt;
}

}  // namespace

std::string Quote(const nlohmann::json& value) {
  if (value.is_structured() && value.size() > 8) {
    return fmt::format("{} of {} values", value.type_name(), value.size());
  }
  std::string text = value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  if (text.size() <= kMaxQuotedBytes) return text;
  text.resize(CompleteUtf8Prefix(std::string_view(text).substr(0, kMaxQuotedBytes)));
  return text + "...";
}

const nlohmann::json* ConfigReader::Find(const char* key) const {
  const auto found = json_.find(key);
  return found == json_.end() || found->is_null() ? nullptr : &*found;
}

int64_t ConfigReader::Int(const char* key, int64_t low, int64_t high) {
  const nlohmann::json* value = Find(key);
  if (value == nullptr) {
    Fail(InvalidArgument("{}: {} is missing", where_, key));
    return low;
  }
  const std::optional<int64_t> number = AsInt(*value);
  if (!number || *number < low || *number > high) {
    Fail(InvalidArgument("{}: {} is {}, must be an integer in {}..{}", where_, key, Quote(*value),
                         low, high));
    return low;
  }
  return *number;
}

int64_t ConfigReader::Int(const char* key, int64_t low, int64_t high, int64_t default_value) {
  return Has(key) ? Int(key, low, high) : default_value;
}

double ConfigReader::Double(const char* key, double low, double high) {
  const nlohmann::json* value = Find(key);
  if (value == nullptr) {
    Fail(InvalidArgument("{}: {} is missing", where_, key));
    return low;
  }
  const double number = value->is_number() ? value->get<double>() : NAN;
  if (!(number >= low && number <= high)) {
    Fail(InvalidArgument("{}: {} is {}, must be a number in {}..{}", where_, key, Quote(*value),
                         low, high));
    return low;
  }
  return number;
}

double ConfigReader::Double(const char* key, double low, double high, double default_value) {
  return Has(key) ? Double(key, low, high) : default_value;
}

bool ConfigReader::Bool(const char* key, bool default_value) {
  const nlohmann::json* value = Find(key);
  if (value == nullptr) return default_value;
  if (!value->is_boolean()) {
    Fail(InvalidArgument("{}: {} is {}, must be true or false", where_, key, Quote(*value)));
    return default_value;
  }
  return value->get<bool>();
}

std::string ConfigReader::String(const char* key, std::string_view default_value) {
  const nlohmann::json* value = Find(key);
  if (value == nullptr) return std::string(default_value);
  if (!value->is_string()) {
    Fail(InvalidArgument("{}: {} is {}, must be a string", where_, key, Quote(*value)));
    return std::string(default_value);
  }
  return value->get<std::string>();
}

std::vector<std::string> ConfigReader::Strings(const char* key, size_t max_count) {
  std::vector<std::string> strings;
  const nlohmann::json* value = Find(key);
  if (value == nullptr) return strings;
  if (!value->is_array() || value->size() > max_count) {
    Fail(InvalidArgument("{}: {} is {}, must be a list of at most {} strings", where_, key,
                         Quote(*value), max_count));
    return strings;
  }
  for (const nlohmann::json& entry : *value) {
    if (!entry.is_string()) {
      Fail(InvalidArgument("{}: {} holds {}, must hold strings", where_, key, Quote(entry)));
      return {};
    }
    strings.push_back(entry.get<std::string>());
  }
  return strings;
}

std::vector<int32_t> ConfigReader::Ids(const char* key, int64_t high, size_t max_count) {
  std::vector<int32_t> ids;
  const nlohmann::json* value = Find(key);
  if (value == nullptr) return ids;
  const bool is_list = value->is_array();
  if (is_list && value->size() > max_count) {
    Fail(InvalidArgument("{}: {} has {} ids, the limit is {}", where_, key, value->size(),
                         max_count));
    return ids;
  }
  const size_t count = is_list ? value->size() : 1;
  for (size_t i = 0; i < count; ++i) {
    const nlohmann::json& entry = is_list ? (*value)[i] : *value;
    const std::optional<int64_t> id = AsInt(entry);
    if (!id || *id < 0 || *id > high) {
      Fail(InvalidArgument("{}: {} is {}, must be token ids in 0..{}", where_, key, Quote(entry),
                           high));
      return {};
    }
    ids.push_back(static_cast<int32_t>(*id));
  }
  return ids;
}

const nlohmann::json* ConfigReader::Object(const char* key) {
  const nlohmann::json* value = Find(key);
  if (value != nullptr && !value->is_object()) {
    Fail(InvalidArgument("{}: {} is {}, must be an object", where_, key, Quote(*value)));
    return nullptr;
  }
  return value;
}

}  // namespace nibble::engine
