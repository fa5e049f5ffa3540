// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/auth/access.h"

#include <algorithm>
#include <optional>

#include "server/auth/authorization.h"

namespace nibble::server {
namespace {

bool EqualsIgnoreCase(std::string_view a, std::string_view b) {
  const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; };
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [&](char x, char y) { return lower(x) == lower(y); });
}

// Host and port of an origin; its scheme is not compared, for a proxy may have ended TLS. "null",
// which sandboxed pages send, is no host.
std::string_view HostOf(std::string_view origin) {
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (origin.substr(0, scheme.size()) == scheme) return origin.substr(scheme.size());
  }
  return "";
}

}  // namespace

absl::Status CheckAccess(const ApiKeys& keys, const Presented& presented) {
  if (presented.authorization.empty()) {
    return absl::UnauthenticatedError("an API key is needed: Authorization: Bearer KEY");
  }
  if (presented.authorization.size() > 1) {
    return absl::UnauthenticatedError("the request has more than one Authorization header");
  }
  const std::optional<Credential> credential = ParseAuthorization(presented.authorization.front());
  if (!credential.has_value()) {
    return absl::UnauthenticatedError(
        "the Authorization header is neither \"Bearer KEY\" nor Basic with the key as password");
  }
  if (!keys.Contains(credential->key)) {
    return absl::UnauthenticatedError("the API key is not one of this server's");
  }
  if (!credential->by_basic) return absl::OkStatus();
  for (const std::string_view origin : presented.origin) {
    const std::string_view host = HostOf(origin);
    if (host.empty() || !EqualsIgnoreCase(host, presented.host)) {
      return absl::PermissionDeniedError(
          "pages of other hosts may not use the key that the browser remembers for this one");
    }
  }
  return absl::OkStatus();
}

}  // namespace nibble::server
