// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A place in a JSON file together with its path, so that every complaint names the element:
// "tokenizer.json: pre_tokenizer.pretokenizers[0].pattern: ...".
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nlohmann/json_fwd.hpp"

#include "base/status.h"

namespace nibble::engine {

// Refers into a document that must outlive it.
class JsonNode {
 public:
  // `value` may be null: an element that is not there.
  JsonNode(const nlohmann::json* value, std::string path) : value_(value), path_(std::move(path)) {}

  bool exists() const;  // present and not null
  bool is_object() const;
  bool is_array() const;
  bool is_string() const;
  const std::string& path() const { return path_; }
  const nlohmann::json& raw() const { return *value_; }  // REQUIRES: exists()

  JsonNode operator[](std::string_view key) const;
  absl::StatusOr<std::vector<JsonNode>> Elements() const;                         // of an array
  absl::StatusOr<std::vector<std::pair<std::string, JsonNode>>> Members() const;  // of an object

  absl::StatusOr<std::string> String() const;
  absl::StatusOr<int64_t> Int(int64_t low, int64_t high) const;
  absl::StatusOr<bool> Bool() const;
  absl::StatusOr<bool> BoolOr(bool absent) const;  // `absent` when it does not exist
  absl::StatusOr<double> Number() const;

  // INVALID_ARGUMENT that names the element.
  absl::Status Error(std::string_view what) const;

 private:
  const nlohmann::json* value_;
  std::string path_;
};

}  // namespace nibble::engine
