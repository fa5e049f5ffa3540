// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/health/health_metrics.h"

#include "prometheus/gauge.h"
#include "prometheus/registry.h"
#include "prometheus/text_serializer.h"

namespace nibble::server {

std::string HealthMetrics(const HealthReport& report, const std::string& model_name) {
  prometheus::Registry registry;
  const prometheus::Labels labels = {{"model_name", model_name}, {"engine", "0"}};
  const auto add = [&registry](const char* name, const char* help) -> auto& {
    return prometheus::BuildGauge().Name(name).Help(help).Register(registry);
  };
  auto& states =
      add("nibble:health_state", "1 for the state that the server is in: what /health says.");
  for (int i = 0; i < kNumHealthStates; ++i) {
    const auto state = static_cast<HealthState>(i);
    prometheus::Labels with_state = labels;
    with_state["state"] = ToString(state);
    states.Add(with_state).Set(state == report.state ? 1 : 0);
  }
  add("nibble:ready", "1 while /health says ready: the server can be sent requests.")
      .Add(labels)
      .Set(report.is_ready() ? 1 : 0);
  add("nibble:step_age_seconds",
      "How long the engine has been at work without ending a step; 0 while it has nothing to do.")
      .Add(labels)
      .Set(report.step_age_seconds);
  return prometheus::TextSerializer().Serialize(registry.Collect());
}

}  // namespace nibble::server
