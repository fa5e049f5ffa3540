// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/metrics/process_metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <string>

#include "gtest/gtest.h"

namespace nibble::server {
namespace {

// -1: not there.
double Value(const std::string& text, const std::string& name) {
  const size_t at = text.find("\n" + name + " ");
  return at == std::string::npos ? -1 : std::strtod(text.c_str() + at + name.size() + 2, nullptr);
}

TEST(ProcessMetricsTest, AreThoseOfThisProcess) {
  const std::string text = ProcessMetrics();
  EXPECT_GE(Value(text, "process_cpu_seconds_total"), 0);
  EXPECT_GT(Value(text, "process_resident_memory_bytes"), 1 << 20);
  EXPECT_GT(Value(text, "process_virtual_memory_bytes"),
            Value(text, "process_resident_memory_bytes"));
  EXPECT_GE(Value(text, "process_threads"), 1);
  EXPECT_GT(Value(text, "process_max_fds"), Value(text, "process_open_fds"));
  const double now =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  // The machine's clock may have been set since it started.
  EXPECT_NEAR(Value(text, "process_start_time_seconds"), now, 3600);
}

TEST(ProcessMetricsTest, OpenFilesAreCounted) {
  const double before = Value(ProcessMetrics(), "process_open_fds");
  const int file = open("/dev/null", O_RDONLY | O_CLOEXEC);
  ASSERT_GE(file, 0);
  EXPECT_EQ(Value(ProcessMetrics(), "process_open_fds"), before + 1);
  close(file);
}

}  // namespace
}  // namespace nibble::server
