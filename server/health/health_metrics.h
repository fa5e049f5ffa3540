// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// nibble:health_state{state="..."}: 1 for the state that the server is in, 0 for the others;
// nibble:ready and nibble:step_age_seconds.
#pragma once

#include <string>

#include "server/health/health.h"

namespace nibble::server {

// In Prometheus' text format. There while the model is loaded as well.
std::string HealthMetrics(const HealthReport& report, const std::string& model_name);

}  // namespace nibble::server
