// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/http/url.h"

namespace nibble::client {

absl::StatusOr<Url> Url::Parse(std::string_view text) {
  const auto error = [&] {
    return InvalidArgument("'{}' is not an address, want http://HOST[:PORT] or https://HOST[:PORT]",
                           text);
  };
  Url url;
  url.tls = text.starts_with("https://");
  if (!url.tls && !text.starts_with("http://")) return error();
  std::string_view rest = text.substr(text.find("//") + 2);
  // It becomes part of a request's head.
  for (const char c : rest) {
    if (c <= ' ' || c > '~') return error();
  }
  if (const size_t slash = rest.find('/'); slash != std::string_view::npos) {
    url.prefix = rest.substr(slash);
    while (!url.prefix.empty() && url.prefix.back() == '/') url.prefix.pop_back();
    if (url.prefix.ends_with("/v1")) url.prefix.resize(url.prefix.size() - 3);
    rest = rest.substr(0, slash);
  }
  url.port = url.tls ? "443" : "80";
  const size_t bracket = rest.find(']');  // [::1]:8000
  const size_t colon = rest.find(':', bracket == std::string_view::npos ? 0 : bracket);
  if (colon != std::string_view::npos) {
    url.port = rest.substr(colon + 1);
    rest = rest.substr(0, colon);
  }
  if (rest.starts_with('[') && rest.ends_with(']')) rest = rest.substr(1, rest.size() - 2);
  url.host = rest;
  if (url.host.empty() || !IsPort(url.port)) return error();
  return url;
}

bool IsPort(std::string_view text) {
  if (text.empty() || text.size() > 5) return false;
  int port = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return false;
    port = port * 10 + (c - '0');
  }
  return port >= 1 && port <= 65535;
}

std::string Url::Authority() const {
  const bool is_ipv6 = host.find(':') != std::string::npos;
  return (is_ipv6 ? "[" + host + "]" : host) + ":" + port;
}

}  // namespace nibble::client
