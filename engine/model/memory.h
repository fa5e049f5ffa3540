// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// How much memory this process may still take. An allocation that Linux grants and cannot back ends
// in the kernel killing the process, so large buffers are checked against this first.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"

namespace nibble::engine {

// The least of what the machine has available (MemAvailable) and what the process's control groups
// leave (base/cgroup.h); page cache counts as available in both. INT64_MAX when neither can be
// read.
int64_t AvailableMemoryBytes();

// OK when `bytes` are to be had; else RESOURCE_EXHAUSTED: "`what` needs ... bytes, ... are
// available".
absl::Status CheckMemory(int64_t bytes, std::string_view what);

namespace internal {
// MemAvailable of the text of /proc/meminfo, in bytes; INT64_MAX when it is not there.
int64_t ParseMemAvailable(const std::string& meminfo);
}  // namespace internal

}  // namespace nibble::engine
