// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/memory.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <limits>
#include <sstream>

#include "base/cgroup.h"

namespace nibble::engine {
namespace {

constexpr int64_t kUnknown = std::numeric_limits<int64_t>::max();

// Files of /proc and /sys report size 0, so they are read as streams.
std::string ReadSmallFile(const char* path) {
  std::ifstream file(path);
  return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

}  // namespace

namespace internal {

int64_t ParseMemAvailable(const std::string& meminfo) {
  constexpr std::string_view kKey = "MemAvailable:";
  const size_t at = meminfo.find(kKey);
  if (at == std::string::npos) return kUnknown;
  std::istringstream text(meminfo.substr(at + kKey.size()));
  int64_t kib = 0;
  if (!(text >> kib) || kib < 0 || kib > kUnknown / 1024) return kUnknown;
  return kib * 1024;
}

}  // namespace internal

int64_t AvailableMemoryBytes() {
  return std::min(internal::ParseMemAvailable(ReadSmallFile("/proc/meminfo")),
                  ReadCgroupLimits().memory_available_bytes);
}

absl::Status CheckMemory(int64_t bytes, std::string_view what) {
  const int64_t available = AvailableMemoryBytes();
  if (bytes <= available) return absl::OkStatus();
  return ResourceExhausted("{} needs {} bytes of memory, {} are available", what, bytes, available);
}

}  // namespace nibble::engine
