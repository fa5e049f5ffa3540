// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/cpu_list.h"

#include <algorithm>
#include <charconv>

namespace nibble {
namespace {

constexpr int kMaxCpu = 1023;

bool ParseCpu(std::string_view text, int* cpu) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *cpu);
  return error == std::errc() && end == text.data() + text.size() && *cpu >= 0 && *cpu <= kMaxCpu;
}

}  // namespace

absl::StatusOr<std::vector<int>> ParseCpuList(std::string_view text) {
  std::vector<int> cpus;
  for (std::string_view rest = text;;) {
    const size_t comma = rest.find(',');
    const std::string_view item = rest.substr(0, comma);
    const size_t dash = item.find('-');
    int first = 0;
    int last = 0;
    if (!ParseCpu(item.substr(0, dash), &first) ||
        !ParseCpu(dash == std::string_view::npos ? item : item.substr(dash + 1), &last) ||
        last < first) {
      return InvalidArgument("'{}' is no CPU list: want numbers and ranges 0..{} such as 0-3,8",
                             text, kMaxCpu);
    }
    for (int cpu = first; cpu <= last; ++cpu) {
      if (std::find(cpus.begin(), cpus.end(), cpu) != cpus.end()) {
        return InvalidArgument("CPU list '{}' names CPU {} twice", text, cpu);
      }
      cpus.push_back(cpu);
    }
    if (comma == std::string_view::npos) return cpus;
    rest.remove_prefix(comma + 1);
  }
}

}  // namespace nibble
