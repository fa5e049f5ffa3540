// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the control groups that this process is in leave it (cgroup v2 or v1): in a container, the
// machine's memory and CPUs are not the process's.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

namespace nibble {

struct CgroupLimits {
  // Limit - used + page cache of files, which the kernel gives back before it kills; INT64_MAX when
  // nothing limits.
  int64_t memory_available_bytes = std::numeric_limits<int64_t>::max();
  // CPU time per period in whole CPUs, rounded up; INT_MAX when nothing limits.
  int num_cpus = std::numeric_limits<int>::max();
};

// The least over the process's own group and those above it, as far as they are mounted under
// `root`. A file that is missing or makes no sense limits nothing. Reads the files at every call.
CgroupLimits ReadCgroupLimits(const std::string& root = "/sys/fs/cgroup",
                              const std::string& self = "/proc/self/cgroup");

}  // namespace nibble
