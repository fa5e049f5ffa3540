// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A folder that appears whole or not at all: filled under another name, renamed at the end.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"

namespace nibble::quantize {

class OutputFolder {
 public:
  // Makes "OUTPUT.partial-PID" beside `output` (and missing parents). ALREADY_EXISTS when `output`
  // has files in it, unless `overwrite` is set and one of them is a config.json.
  static absl::StatusOr<OutputFolder> Create(const std::string& output, bool overwrite);

  OutputFolder(OutputFolder&& other) noexcept;
  OutputFolder& operator=(OutputFolder&& other) = delete;
  ~OutputFolder();  // removes the partial folder unless Commit was reached

  const std::string& path() const { return path_; }
  absl::Status WriteFile(std::string_view name, std::string_view content) const;
  // Copies `name` from `folder` when it is there (following links).
  absl::Status CopyFile(const std::string& folder, std::string_view name) const;

  // Renames the partial folder to `output`; what was there goes only after the new one is in place.
  absl::Status Commit();

 private:
  OutputFolder() = default;

  std::string output_;
  std::string path_;  // empty: committed or moved from
};

}  // namespace nibble::quantize
