// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/health/health_metrics.h"

#include <string_view>

#include "fmt/format.h"

namespace nibble::server {
namespace {

// A label's value in the text format.
std::string Escaped(std::string_view value) {
  std::string out;
  for (const char c : value) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
  return out;
}

std::string Head(std::string_view name, std::string_view help) {
  return fmt::format("# HELP {0} {1}\n# TYPE {0} gauge\n", name, help);
}

}  // namespace

std::string HealthMetrics(const HealthReport& report, const std::string& model_name) {
  const std::string labels = fmt::format("engine=\"0\",model_name=\"{}\"", Escaped(model_name));
  std::string text =
      Head("nibble:health_state", "1 for the state that the server is in: what /health says.");
  for (int i = 0; i < kNumHealthStates; ++i) {
    const auto state = static_cast<HealthState>(i);
    text += fmt::format("nibble:health_state{{{},state=\"{}\"}} {}\n", labels, ToString(state),
                        state == report.state ? 1 : 0);
  }
  text += Head("nibble:ready", "1 while /health says ready: the server can be sent requests.");
  text += fmt::format("nibble:ready{{{}}} {}\n", labels, report.is_ready() ? 1 : 0);
  text += Head(
      "nibble:step_age_seconds",
      "How long the engine has been at work without ending a step; 0 while it has nothing to do.");
  text += fmt::format("nibble:step_age_seconds{{{}}} {}\n", labels, report.step_age_seconds);
  return text;
}

}  // namespace nibble::server
