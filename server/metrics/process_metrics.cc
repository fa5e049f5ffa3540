// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/metrics/process_metrics.h"

#include <sys/resource.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>
#include <string_view>
#include <system_error>

#include "fmt/format.h"

namespace nibble::server {
namespace {

// Fields of /proc/self/stat that are told; times in clock ticks.
struct ProcessStat {
  uint64_t user_ticks = 0;
  uint64_t system_ticks = 0;
  int64_t num_threads = 0;
  uint64_t start_ticks = 0;  // since the machine's start
  uint64_t virtual_bytes = 0;
  int64_t resident_pages = 0;
};

std::optional<ProcessStat> ReadStat() {
  std::ifstream file("/proc/self/stat");
  std::string line;
  if (!std::getline(file, line)) return std::nullopt;
  // The second field is the program's name in parentheses, with any character.
  const size_t name_end = line.rfind(')');
  if (name_end == std::string::npos) return std::nullopt;
  std::istringstream fields(line.substr(name_end + 1));
  ProcessStat stat;
  std::string skipped;
  for (int field = 3; field <= 13; ++field) fields >> skipped;
  fields >> stat.user_ticks >> stat.system_ticks;
  for (int field = 16; field <= 19; ++field) fields >> skipped;
  fields >> stat.num_threads >> skipped >> stat.start_ticks >> stat.virtual_bytes >>
      stat.resident_pages;
  if (!fields) return std::nullopt;
  return stat;
}

// When the machine started, in seconds since 1970.
std::optional<uint64_t> BootTime() {
  std::ifstream file("/proc/stat");
  for (std::string word; file >> word;) {
    uint64_t seconds = 0;
    if (word == "btime" && file >> seconds) return seconds;
  }
  return std::nullopt;
}

std::optional<int64_t> CountOpenFiles() {
  std::error_code error;
  std::filesystem::directory_iterator entry("/proc/self/fd", error);
  int64_t count = 0;
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) ++count;
  if (error) return std::nullopt;
  return count - 1;  // without the one that reads the folder
}

template <typename Value>
void Append(std::string* text, std::string_view name, std::string_view type, std::string_view help,
            Value value) {
  fmt::format_to(std::back_inserter(*text), "# HELP {0} {1}\n# TYPE {0} {2}\n{0} {3}\n", name, help,
                 type, value);
}

}  // namespace

std::string ProcessMetrics() {
  std::string text;
  if (const std::optional<ProcessStat> stat = ReadStat(); stat.has_value()) {
    const auto ticks_per_second = static_cast<double>(sysconf(_SC_CLK_TCK));
    Append(&text, "process_cpu_seconds_total", "counter", "CPU time used, in seconds.",
           static_cast<double>(stat->user_ticks + stat->system_ticks) / ticks_per_second);
    Append(&text, "process_resident_memory_bytes", "gauge", "Resident memory, in bytes.",
           stat->resident_pages * sysconf(_SC_PAGESIZE));
    Append(&text, "process_virtual_memory_bytes", "gauge", "Virtual memory, in bytes.",
           stat->virtual_bytes);
    Append(&text, "process_threads", "gauge", "Threads.", stat->num_threads);
    if (const std::optional<uint64_t> boot_time = BootTime(); boot_time.has_value()) {
      Append(&text, "process_start_time_seconds", "gauge",
             "When the process started, in seconds since 1970.",
             static_cast<double>(*boot_time) +
                 static_cast<double>(stat->start_ticks) / ticks_per_second);
    }
  }
  if (const std::optional<int64_t> open_files = CountOpenFiles(); open_files.has_value())
    Append(&text, "process_open_fds", "gauge", "Open file descriptors.", *open_files);
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
    Append(&text, "process_max_fds", "gauge", "Most file descriptors that may be open.",
           limit.rlim_cur);
  return text;
}

}  // namespace nibble::server
