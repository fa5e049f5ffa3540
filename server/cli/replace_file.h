// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Files that readers find whole, the old one or the new one.
#pragma once

#include <string>

#include "base/status.h"

namespace nibble::cli {

// Writes `text` beside `path` and renames it; of a link, beside the file that it leads to. What is
// no file (a device, a pipe) stays, and the text is written into it. UNAVAILABLE, naming path and
// reason, when that cannot be.
absl::Status ReplaceFile(const std::string& path, const std::string& text);

// Whether it could, as far as can be told without touching the file.
absl::Status CheckReplaceable(const std::string& path);

}  // namespace nibble::cli
