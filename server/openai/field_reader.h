// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Reads the fields of one JSON object with type and range, and afterwards refuses what nobody read:
// a field is served, refused by name, or known to change nothing, but never silently dropped.
//
//   FieldReader reader(body);
//   const auto top_p = reader.Number("top_p", {0.0, 1.0, .open_low = true});
//   NIBBLE_RETURN_IF_ERROR(reader.Finish());
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nlohmann/json.hpp"

#include "base/status.h"

namespace nibble::server {

struct NumberRange {
  double low = 0.0;
  double high = 0.0;
  bool open_low = false;  // `low` itself is out
};

// What a client gets for a field of the OpenAI or vLLM API that nibble has not built.
enum class FieldFate {
  kUnknown,   // no such field in any API we follow
  kRefused,   // known, and this value asks for something we do not do
  kHarmless,  // known, and this value asks for nothing
};
FieldFate JudgeUnreadField(std::string_view name, const nlohmann::json& value);

// Not thread-safe. `object` must outlive the reader. The first error is kept and Finish() returns
// it; reads after it give nothing.
class FieldReader {
 public:
  // What a field that is in no API we follow does.
  enum class Unknown {
    kRefused,
    kMayBeEmpty,  // "", [], {} are harmless: answers of other servers, echoed back, bring such
  };
  // `prefix` ("messages[2].") is put before field names in errors.
  explicit FieldReader(const nlohmann::json& object, std::string prefix = "",
                       Unknown unknown = Unknown::kRefused);

  // All: nullopt (or null) when the field is absent, null, or in error.
  const nlohmann::json* Get(const std::string& name);
  std::optional<bool> Bool(const std::string& name);
  std::optional<int64_t> Integer(const std::string& name,
                                 int64_t low = std::numeric_limits<int64_t>::min(),
                                 int64_t high = std::numeric_limits<int64_t>::max());
  std::optional<float> Number(const std::string& name, const NumberRange& range);
  std::optional<std::string> String(const std::string& name);
  // A list of token ids, each in 0..vocab_size-1.
  std::optional<std::vector<int32_t>> TokenIds(const std::string& name, size_t max_count,
                                               int64_t vocab_size);

  void Fail(const std::string& name, absl::Status status);
  // An error that names its field already; OK changes nothing.
  void FailAsIs(absl::Status status) {
    if (status_.ok()) status_ = std::move(status);
  }
  bool ok() const { return status_.ok(); }
  std::string FullName(const std::string& name) const { return prefix_ + name; }

  // The first error, or a refusal of the first field that nobody read.
  absl::Status Finish();

 private:
  const nlohmann::json& object_;
  std::string prefix_;
  Unknown unknown_;
  std::set<std::string> read_;
  absl::Status status_;
};

// The beginning of a client's text, for messages: it may be a megabyte.
std::string Shown(const std::string& text);

// "a string", "an integer" ...: what a value is, for messages.
std::string_view DescribeType(const nlohmann::json& value);

// The ids of a JSON array; errors name the element.
absl::StatusOr<std::vector<int32_t>> ReadTokenIds(const nlohmann::json& value, size_t max_count,
                                                  int64_t vocab_size);

}  // namespace nibble::server
