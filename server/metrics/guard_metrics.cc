// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/metrics/guard_metrics.h"

#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "prometheus/registry.h"
#include "prometheus/text_serializer.h"

namespace nibble::server {

std::string GuardMetrics(const GuardState& state, const std::string& model_name) {
  prometheus::Registry registry;  // of this answer: it writes labels as they must be
  const prometheus::Labels labels = {{"model_name", model_name}, {"engine", "0"}};
  const auto gauge = [&](const char* name, const char* help, double value) {
    prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add(labels).Set(value);
  };
  if (state.certificate_expiry_unix_seconds.has_value()) {
    gauge("nibble:tls_certificate_expiry_timestamp_seconds",
          "When the certificate that new connections get ends, in seconds since 1970.",
          static_cast<double>(*state.certificate_expiry_unix_seconds));
  }
  gauge("nibble:api_key_file_stale",
        "1 while the file of API keys cannot be used: the keys before it are still valid.",
        state.key_file_is_stale ? 1 : 0);
  prometheus::BuildCounter()
      .Name("nibble:api_key_file_errors_total")
      .Help("Changes of the file of API keys to something that cannot be used.")
      .Register(registry)
      .Add(labels)
      .Increment(static_cast<double>(state.num_key_file_errors));
  return prometheus::TextSerializer().Serialize(registry.Collect());
}

}  // namespace nibble::server
