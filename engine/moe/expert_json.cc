// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Layouts and loads as JSON. Both are tables with a row per layer.

#include <limits>

#include "fmt/format.h"
#include "fmt/ranges.h"

#include "base/json.h"
#include "engine/moe/expert_layout.h"
#include "engine/moe/expert_load.h"

namespace nibble::engine {
namespace {

template <typename T>
std::string Table(const std::vector<T>& values, int64_t num_columns) {
  std::string text = "[";
  for (auto row = values.begin(); row != values.end(); row += num_columns) {
    fmt::format_to(std::back_inserter(text), "{}[{}]", row == values.begin() ? "" : ", ",
                   fmt::join(row, row + num_columns, ", "));
  }
  return text + "]";
}

class TableReader {
 public:
  static absl::StatusOr<TableReader> Parse(std::string_view text, std::string_view where) {
    auto json = ParseJson(text);
    if (!json.ok()) return Annotate(json.status(), absl::string_view(where.data(), where.size()));
    if (!json->is_object()) {
      return InvalidArgument("{}: holds {}, must be an object", where, json->type_name());
    }
    return TableReader(std::move(json).value(), where);
  }

  absl::StatusOr<int64_t> Size(const char* key, int64_t min, int64_t max) const {
    const nlohmann::json* const value = Find(key);
    if (value == nullptr) return InvalidArgument("{}: '{}' is missing", where_, key);
    return Integer(*value, key, min, max);
  }

  // Rows of `num_columns` numbers 0..max.
  template <typename T>
  absl::StatusOr<std::vector<T>> Table(const char* key, int64_t num_columns, int64_t max) const {
    const nlohmann::json* const table = Find(key);
    if (table == nullptr || !table->is_array()) {
      return InvalidArgument("{}: '{}' is {}, must be an array with a row per layer", where_, key,
                             table == nullptr ? "missing" : table->type_name());
    }
    if (table->empty() || table->size() > kMaxLayoutLayers) {
      return InvalidArgument("{}: '{}' has {} rows, must have 1..{}", where_, key, table->size(),
                             kMaxLayoutLayers);
    }
    std::vector<T> values;
    for (size_t layer = 0; layer < table->size(); ++layer) {
      const nlohmann::json& row = (*table)[layer];
      if (!row.is_array() || static_cast<int64_t>(row.size()) != num_columns) {
        return InvalidArgument("{}: '{}' of layer {} is {} of {}, must be an array of {}", where_,
                               key, layer, row.type_name(), row.size(), num_columns);
      }
      for (size_t i = 0; i < row.size(); ++i) {
        const std::string name = fmt::format("{}[{}][{}]", key, layer, i);
        NIBBLE_ASSIGN_OR_RETURN(const int64_t value, Integer(row[i], name, 0, max));
        values.push_back(static_cast<T>(value));
      }
    }
    return values;
  }

 private:
  TableReader(nlohmann::json json, std::string_view where)
      : json_(std::move(json)), where_(where) {}

  const nlohmann::json* Find(const char* key) const {
    const auto found = json_.find(key);
    return found == json_.end() ? nullptr : &*found;
  }

  absl::StatusOr<int64_t> Integer(const nlohmann::json& value, std::string_view name, int64_t min,
                                  int64_t max) const {
    if (!value.is_number_integer()) {
      return InvalidArgument("{}: '{}' is {}, must be an integer {}..{}", where_, name,
                             value.type_name(), min, max);
    }
    // Numbers beyond int64 are unsigned here.
    const bool is_huge =
        value.is_number_unsigned() && value.get<uint64_t>() > std::numeric_limits<int64_t>::max();
    if (is_huge || value.get<int64_t>() < min || value.get<int64_t>() > max) {
      return InvalidArgument("{}: '{}' is {}, must be {}..{}", where_, name, value.dump(), min,
                             max);
    }
    return value.get<int64_t>();
  }

  nlohmann::json json_;
  std::string where_;
};

}  // namespace

std::string Serialize(const ExpertLayout& layout) {
  return fmt::format(R"({{"num_experts": {}, "num_slots": {}, "expert_of_slot": {}}})",
                     layout.num_experts, layout.num_slots,
                     Table(layout.expert_of_slot, layout.num_slots));
}

absl::StatusOr<ExpertLayout> ParseExpertLayout(std::string_view json, std::string_view where) {
  NIBBLE_ASSIGN_OR_RETURN(const TableReader reader, TableReader::Parse(json, where));
  ExpertLayout layout;
  NIBBLE_ASSIGN_OR_RETURN(layout.num_experts, reader.Size("num_experts", 1, kMaxSlots));
  NIBBLE_ASSIGN_OR_RETURN(layout.num_slots,
                          reader.Size("num_slots", layout.num_experts, kMaxSlots));
  NIBBLE_ASSIGN_OR_RETURN(
      layout.expert_of_slot,
      reader.Table<int32_t>("expert_of_slot", layout.num_slots, layout.num_experts - 1));
  const absl::Status status =
      CheckExpertLayout(layout, layout.num_layers(), layout.num_experts, /*expert_size=*/1);
  if (!status.ok()) return Annotate(status, absl::string_view(where.data(), where.size()));
  return layout;
}

std::string Serialize(const ExpertLoad& load) {
  return fmt::format(R"({{"num_layers": {}, "num_experts": {}, "tokens": {}}})", load.num_layers,
                     load.num_experts, Table(load.tokens, load.num_experts));
}

absl::StatusOr<ExpertLoad> ParseExpertLoad(std::string_view json, std::string_view where) {
  NIBBLE_ASSIGN_OR_RETURN(const TableReader reader, TableReader::Parse(json, where));
  ExpertLoad load;
  NIBBLE_ASSIGN_OR_RETURN(load.num_layers, reader.Size("num_layers", 1, kMaxLayoutLayers));
  NIBBLE_ASSIGN_OR_RETURN(load.num_experts, reader.Size("num_experts", 1, kMaxSlots));
  NIBBLE_ASSIGN_OR_RETURN(load.tokens, reader.Table<uint64_t>("tokens", load.num_experts,
                                                              std::numeric_limits<int64_t>::max()));
  const auto num_rows = static_cast<int64_t>(load.tokens.size()) / load.num_experts;
  if (num_rows != load.num_layers) {
    return InvalidArgument("{}: 'tokens' has {} rows, 'num_layers' is {}", where, num_rows,
                           load.num_layers);
  }
  return load;
}

}  // namespace nibble::engine
