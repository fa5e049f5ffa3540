// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Reads fields of a JSON object with range checks. The first fault is kept and ends all further
// checks, so that a parser reads as a list of fields with their ranges:
//
//   ConfigReader reader(json, path);
//   config.hidden_size = reader.Int("hidden_size", 1, 1 << 17);
//   config.rms_norm_eps = reader.Double("rms_norm_eps", 0.0, 1.0, 1e-6);
//   return reader.status();
//
// null counts as absent, as in transformers.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nlohmann/json.hpp"

#include "base/status.h"

namespace nibble::engine {

class ConfigReader {
 public:
  // `json` is an object and outlives the reader. `where` begins every message: the path, and below
  // the top level the object's name.
  ConfigReader(const nlohmann::json& json, std::string_view where) : json_(json), where_(where) {}

  const absl::Status& status() const { return status_; }
  bool ok() const { return status_.ok(); }

  bool Has(const char* key) const { return Find(key) != nullptr; }
  // Has it, be it null.
  bool Contains(const char* key) const { return json_.contains(key); }
  // nullptr when absent or null.
  const nlohmann::json* Find(const char* key) const;

  // Required; `low` when at fault, so that later arithmetic stays in range.
  int64_t Int(const char* key, int64_t low, int64_t high);
  int64_t Int(const char* key, int64_t low, int64_t high, int64_t default_value);
  // Finite, in [low, high].
  double Double(const char* key, double low, double high);
  double Double(const char* key, double low, double high, double default_value);
  bool Bool(const char* key, bool default_value);
  std::string String(const char* key, std::string_view default_value);
  std::vector<std::string> Strings(const char* key, size_t max_count);
  // An integer or a list of them; empty when absent.
  std::vector<int32_t> Ids(const char* key, int64_t high, size_t max_count);
  // The object `key`; null when absent (and, with a fault, when it is something else).
  const nlohmann::json* Object(const char* key);

  void Fail(absl::Status status) {
    if (status_.ok()) status_ = std::move(status);
  }
  // "config.json: rope_scaling": prefix for messages.
  const std::string& where() const { return where_; }

 private:
  const nlohmann::json& json_;
  std::string where_;
  absl::Status status_;
};

// The value as JSON, cut to a length fit for a message.
std::string Quote(const nlohmann::json& value);

}  // namespace nibble::engine
