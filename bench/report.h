// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a benchmark prints: one JSON document, and for people a table whose rows appear as they are
// measured.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"

#include "base/cpu_features.h"
#include "base/status.h"
#include "bench/roofline.h"

namespace nibble::bench {

struct Column {
  const char* key;  // of a row's member; rows without it leave the field blank
  const char* heading;
  int width;
  int decimals = 0;  // of numbers that are not whole
};

class Report {
 public:
  // `table` gets the headings now and a line for each row; null: no table.
  Report(std::string name, std::vector<Column> columns, std::FILE* table);

  // Has the document in `file`, too, from now on: anew after each row, with `"incomplete": true`
  // until Finish(), so that a run that is ended leaves what it measured. Empty: no file.
  absl::Status SaveTo(const std::string& file, int threads, const nlohmann::ordered_json& peaks,
                      const nlohmann::ordered_json& members = {});

  // The table gets a row's `error` on a line of its own.
  void Add(nlohmann::ordered_json row);

  // {"bench": name, "machine": {...}, "peaks": {...}, ...members, "results": [rows]}. The report is
  // empty afterwards.
  nlohmann::ordered_json Finish(int threads, const nlohmann::ordered_json& peaks,
                                const nlohmann::ordered_json& members = {});

 private:
  nlohmann::ordered_json Head(int threads, const nlohmann::ordered_json& peaks,
                              const nlohmann::ordered_json& members) const;
  void SaveOrWarn(const nlohmann::ordered_json& document);

  std::string name_;
  std::vector<Column> columns_;
  std::FILE* table_;
  nlohmann::ordered_json rows_ = nlohmann::ordered_json::array();
  std::string file_;             // of SaveTo()
  nlohmann::ordered_json head_;  // ... the document but for its rows
};

// `document` in `file`, all of it or what was there before.
absl::Status SaveDocument(const nlohmann::ordered_json& document, const std::string& file);

// Rounded to some 5 digits: more is noise.
double Rounded(double value);

nlohmann::ordered_json ToJson(const Roofline& roofline);
nlohmann::ordered_json ToJson(const DevicePeaks& peaks);

}  // namespace nibble::bench
