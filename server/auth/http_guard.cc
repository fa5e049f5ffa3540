// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/auth/http_guard.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "server/auth/access.h"

namespace nibble::server {
namespace {

constexpr std::array<std::string_view, 3> kOpenPaths = {"/health", "/health/live", "/health/ready"};

Presented PresentedBy(const HttpRequest& request) {
  Presented presented{.host = request.Header("host")};
  for (const auto& [name, value] : request.headers) {
    if (name == "authorization") presented.authorization.push_back(value);
    if (name == "origin") presented.origin.push_back(value);
  }
  return presented;
}

}  // namespace

HttpGuard MakeKeyGuard(std::shared_ptr<const ApiKeys> keys) {
  return [keys = std::move(keys)](const HttpRequest& request) -> std::optional<HttpRefusal> {
    if (std::find(kOpenPaths.begin(), kOpenPaths.end(), request.path) != kOpenPaths.end()) {
      return std::nullopt;
    }
    const absl::Status status = CheckAccess(*keys, PresentedBy(request));
    if (status.ok()) return std::nullopt;
    HttpRefusal refusal{.status = 403, .message = std::string(status.message())};
    if (absl::IsUnauthenticated(status)) {
      refusal.status = 401;
      // Two headers: not every browser takes a list of challenges apart.
      refusal.headers = {{"WWW-Authenticate", "Bearer"},
                         {"WWW-Authenticate", "Basic realm=\"nibble\""}};
    }
    return refusal;
  };
}

}  // namespace nibble::server
