// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Health over HTTP:
//
//   GET /health, /health/ready   200 while requests should be sent here, else 503 with Retry-After
//   GET /health/live             503 when only a restart helps, else 200
//
// Bodies are JSON: {"status": "stalled", "reason": "no step ...", "step_age_seconds": 73.2}, and
// while loading {"status": "loading", "reason": "loading weights, 43 %", "progress": 0.43}. Keys
// are looked for elsewhere: probes have none.
#pragma once

#include <array>
#include <string_view>

#include "server/health/health.h"
#include "server/http/http_server.h"

namespace nibble::server {

inline constexpr std::array<std::string_view, 3> kHealthPaths = {"/health", "/health/ready",
                                                                 "/health/live"};

// Before HttpServer::Start. `health` must outlive the server.
void RegisterHealthRoutes(HttpServer* server, const Health* health);

}  // namespace nibble::server
