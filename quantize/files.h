// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Files that survive a crash whole or not at all.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"

namespace nibble::quantize {

// INTERNAL (RESOURCE_EXHAUSTED for a full disk) naming path, action and reason, from errno.
absl::Status ErrnoError(const std::string& path, std::string_view action);

// Replaces `path` by a synced file with this content.
absl::Status WriteFile(const std::string& path, std::string_view content);
// The names in the folder are on the disk afterwards.
absl::Status SyncFolder(const std::string& path);

}  // namespace nibble::quantize
