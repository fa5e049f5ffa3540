// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/cgroup.h"

#include <algorithm>
#include <fstream>
#include <optional>
#include <sstream>
#include <string_view>

namespace nibble {
namespace {

constexpr int64_t kNone = std::numeric_limits<int64_t>::max();

// The number a file begins with; nothing for "max", for what is no number, and for no file. Files
// of /proc and /sys report size 0, so they are read as streams.
std::optional<int64_t> ReadNumber(const std::string& path) {
  std::ifstream file(path);
  int64_t value = 0;
  if (!(file >> value)) return std::nullopt;
  return value;
}

// Sum of the values of two keys of a memory.stat file ("key value" per line); 0 for those that are
// not there.
int64_t ReadFileCache(const std::string& path, std::string_view prefix) {
  std::ifstream file(path);
  const std::string active = std::string(prefix) + "active_file";
  const std::string inactive = std::string(prefix) + "inactive_file";
  std::string key;
  int64_t value = 0;
  int64_t sum = 0;
  while (file >> key >> value) {
    if ((key == active || key == inactive) && value > 0 && value <= kNone - sum) sum += value;
  }
  return sum;
}

struct MemoryFiles {
  const char* limit;
  const char* used;
  const char* stat_prefix;  // of the keys that include the groups below
};
constexpr MemoryFiles kMemoryV2 = {"memory.max", "memory.current", ""};
constexpr MemoryFiles kMemoryV1 = {"memory.limit_in_bytes", "memory.usage_in_bytes", "total_"};

int64_t MemoryAvailable(const std::string& dir, const MemoryFiles& files) {
  const std::optional<int64_t> limit = ReadNumber(dir + files.limit);
  const std::optional<int64_t> used = ReadNumber(dir + files.used);
  if (!limit.has_value() || !used.has_value() || *limit < 0 || *used < 0) return kNone;
  const int64_t cache = ReadFileCache(dir + "memory.stat", files.stat_prefix);
  const int64_t held = std::max<int64_t>(0, *used - cache);
  return std::max<int64_t>(0, *limit - held);
}

int WholeCpus(int64_t quota_us, int64_t period_us) {
  if (quota_us <= 0 || period_us <= 0) return std::numeric_limits<int>::max();
  const int64_t cpus = quota_us / period_us + (quota_us % period_us != 0 ? 1 : 0);
  return static_cast<int>(std::min<int64_t>(cpus, std::numeric_limits<int>::max()));
}

// "400000 100000": quota and period; "max 100000": no limit.
int CpusV2(const std::string& dir) {
  std::ifstream file(dir + "cpu.max");
  int64_t quota_us = 0;
  int64_t period_us = 0;
  if (!(file >> quota_us >> period_us)) return std::numeric_limits<int>::max();
  return WholeCpus(quota_us, period_us);
}

// A quota of -1 is no limit.
int CpusV1(const std::string& dir) {
  return WholeCpus(ReadNumber(dir + "cpu.cfs_quota_us").value_or(-1),
                   ReadNumber(dir + "cpu.cfs_period_us").value_or(-1));
}

// Calls visit(directory + "/") for the group at `path` under `mount` and for all above it. In a
// container that sees only its own group the path may name nothing, and the mount is the group.
template <typename Visit>
void ForEachAncestor(const std::string& mount, std::string path, const Visit& visit) {
  if (path.find("..") != std::string::npos) path.clear();  // outside of what is mounted
  while (!path.empty() && path != "/") {
    visit(mount + path + "/");
    path.resize(path.rfind('/'));
  }
  visit(mount + "/");
}

bool Lists(std::string_view controllers, std::string_view wanted) {
  while (!controllers.empty()) {
    const size_t comma = std::min(controllers.find(','), controllers.size());
    if (controllers.substr(0, comma) == wanted) return true;
    controllers.remove_prefix(std::min(comma + 1, controllers.size()));
  }
  return false;
}

}  // namespace

CgroupLimits ReadCgroupLimits(const std::string& root, const std::string& self) {
  // Lines "id:controllers:/path"; v2 has one with id 0 and no controllers.
  std::string path_v2 = "/";
  std::string memory_v1 = "/";
  std::string cpu_v1 = "/";
  std::ifstream file(self);
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos || line.compare(second + 1, 1, "/") != 0) continue;
    const std::string_view controllers =
        std::string_view(line).substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (controllers.empty()) path_v2 = path;
    if (Lists(controllers, "memory")) memory_v1 = path;
    if (Lists(controllers, "cpu")) cpu_v1 = path;
  }
  CgroupLimits limits;
  const auto limit_memory = [&limits](int64_t bytes) {
    limits.memory_available_bytes = std::min(limits.memory_available_bytes, bytes);
  };
  const auto limit_cpus = [&limits](int cpus) {
    limits.num_cpus = std::min(limits.num_cpus, cpus);
  };
  ForEachAncestor(root, path_v2, [&](const std::string& dir) {
    limit_memory(MemoryAvailable(dir, kMemoryV2));
    limit_cpus(CpusV2(dir));
  });
  ForEachAncestor(root + "/memory", memory_v1,
                  [&](const std::string& dir) { limit_memory(MemoryAvailable(dir, kMemoryV1)); });
  ForEachAncestor(root + "/cpu", cpu_v1, [&](const std::string& dir) { limit_cpus(CpusV1(dir)); });
  return limits;
}

}  // namespace nibble
