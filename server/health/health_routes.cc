// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/health/health_routes.h"

#include <cmath>
#include <memory>
#include <string>
#include <utility>

#include "nlohmann/json.hpp"

#include "server/status_map.h"

namespace nibble::server {
namespace {

// Digits beyond these would be noise.
double Rounded(double value) { return std::round(value * 1000.0) / 1000.0; }

std::string Body(const HealthReport& report) {
  nlohmann::ordered_json body = {{"status", ToString(report.state)}, {"reason", report.reason}};
  if (report.state == HealthState::kLoading) body["progress"] = Rounded(report.loaded);
  if (report.step_age_seconds > 0.0) body["step_age_seconds"] = Rounded(report.step_age_seconds);
  // A reason may quote a path or a peer's message, which need not be UTF-8.
  return body.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

void Answer(const HealthReport& report, bool is_well, HttpResponder* responder) {
  const StatusMapping& unavailable = MapStatus(absl::StatusCode::kUnavailable);
  HttpHeaders headers = {{"Cache-Control", "no-store"}};
  if (!is_well) {
    headers.emplace_back("Retry-After", std::to_string(unavailable.retry_after_seconds));
  }
  responder->Send(is_well ? 200 : unavailable.http_status, "application/json", Body(report),
                  std::move(headers));
}

}  // namespace

void RegisterHealthRoutes(HttpServer* server, const Health* health) {
  const auto handle = [server, health](std::string_view path,
                                       bool (HealthReport::*is_well)() const) {
    server->Handle("GET", std::string(path),
                   [health, is_well](const HttpRequest& /*request*/,
                                     const std::shared_ptr<HttpResponder>& responder) {
                     const HealthReport report = health->Report();
                     Answer(report, (report.*is_well)(), responder.get());
                   });
  };
  handle(kHealthPaths[0], &HealthReport::is_ready);
  handle(kHealthPaths[1], &HealthReport::is_ready);
  handle(kHealthPaths[2], &HealthReport::is_live);
}

}  // namespace nibble::server
