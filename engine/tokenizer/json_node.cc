// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/tokenizer/json_node.h"

#include "nlohmann/json.hpp"

namespace nibble::engine {

bool JsonNode::exists() const { return value_ != nullptr && !value_->is_null(); }
bool JsonNode::is_object() const { return value_ != nullptr && value_->is_object(); }
bool JsonNode::is_array() const { return value_ != nullptr && value_->is_array(); }
bool JsonNode::is_string() const { return value_ != nullptr && value_->is_string(); }

absl::Status JsonNode::Error(std::string_view what) const {
  return InvalidArgument("{}: {}", path_, what);
}

JsonNode JsonNode::operator[](std::string_view key) const {
  const nlohmann::json* member = nullptr;
  if (is_object()) {
    const auto found = value_->find(std::string(key));
    if (found != value_->end()) member = &*found;
  }
  // The root's path is the file's name and ends in ": ".
  const bool at_root = path_.empty() || path_.ends_with(": ");
  return JsonNode(member, fmt::format("{}{}{}", path_, at_root ? "" : ".", key));
}

absl::StatusOr<std::vector<JsonNode>> JsonNode::Elements() const {
  if (!is_array()) return Error("want an array");
  std::vector<JsonNode> elements;
  for (size_t index = 0; index < value_->size(); ++index) {
    elements.emplace_back(&(*value_)[index], fmt::format("{}[{}]", path_, index));
  }
  return elements;
}

absl::StatusOr<std::vector<std::pair<std::string, JsonNode>>> JsonNode::Members() const {
  if (!is_object()) return Error("want an object");
  std::vector<std::pair<std::string, JsonNode>> members;
  for (const auto& [key, member] : value_->items()) {
    members.emplace_back(key, JsonNode(&member, fmt::format("{}.{}", path_, key)));
  }
  return members;
}

absl::StatusOr<std::string> JsonNode::String() const {
  if (!is_string()) return Error("want a string");
  return value_->get_ref<const std::string&>();
}

absl::StatusOr<int64_t> JsonNode::Int(int64_t low, int64_t high) const {
  if (value_ == nullptr || !value_->is_number_integer()) return Error("want an integer");
  const bool too_big =
      value_->is_number_unsigned() && value_->get<uint64_t>() > uint64_t{INT64_MAX};
  const int64_t value = too_big ? INT64_MAX : value_->get<int64_t>();
  if (value < low || value > high) {
    return Error(fmt::format("{} is outside {}..{}", value_->dump(), low, high));
  }
  return value;
}

absl::StatusOr<bool> JsonNode::Bool() const {
  if (value_ == nullptr || !value_->is_boolean()) return Error("want true or false");
  return value_->get<bool>();
}

absl::StatusOr<bool> JsonNode::BoolOr(bool absent) const {
  if (!exists()) return absent;
  return Bool();
}

absl::StatusOr<double> JsonNode::Number() const {
  if (value_ == nullptr || !value_->is_number()) return Error("want a number");
  return value_->get<double>();
}

}  // namespace nibble::engine
