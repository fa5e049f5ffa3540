// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/web/web.h"

#include <array>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "base/check.h"
#include "server/web/embedded_files.h"

namespace nibble::server {
namespace {

constexpr std::string_view kPage = "index.html";

// Nothing from elsewhere, nothing inline: text of a model that got into the page as HTML, against
// all we do, could neither run nor send anything anywhere.
constexpr std::string_view kContentSecurityPolicy =
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

std::string_view ContentType(std::string_view name) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 4> kTypes = {{
      {".html", "text/html; charset=utf-8"},
      {".css", "text/css; charset=utf-8"},
      {".js", "text/javascript; charset=utf-8"},
      {".svg", "image/svg+xml; charset=utf-8"},
  }};
  for (const auto& [suffix, type] : kTypes) {
    if (name.ends_with(suffix)) return type;
  }
  return {};
}

// Whether one of the tags in If-None-Match is `etag`; weak ones count (RFC 9110, 13.1.2).
bool Matches(std::string_view if_none_match, std::string_view etag) {
  while (!if_none_match.empty()) {
    const size_t comma = if_none_match.find(',');
    std::string_view tag = if_none_match.substr(0, comma);
    if_none_match.remove_prefix(comma == std::string_view::npos ? if_none_match.size() : comma + 1);
    while (!tag.empty() && (tag.front() == ' ' || tag.front() == '\t')) tag.remove_prefix(1);
    while (!tag.empty() && (tag.back() == ' ' || tag.back() == '\t')) tag.remove_suffix(1);
    if (tag.starts_with("W/")) tag.remove_prefix(2);
    if (tag == "*" || tag == etag) return true;
  }
  return false;
}

void Answer(const EmbeddedFile& file, const HttpRequest& request, HttpResponder* responder) {
  constexpr size_t kTagDigits = 32;
  const std::string etag = '"' + std::string(file.sha256.substr(0, kTagDigits)) + '"';
  // no-cache: kept, but asked for again each time. After an upgrade no old script meets a new page.
  HttpHeaders headers = {{"ETag", etag},
                         {"Cache-Control", "no-cache"},
                         {"Content-Security-Policy", std::string(kContentSecurityPolicy)},
                         {"X-Content-Type-Options", "nosniff"},
                         {"Referrer-Policy", "no-referrer"},
                         {"Cross-Origin-Resource-Policy", "same-origin"}};
  if (Matches(request.Header("if-none-match"), etag)) {
    return responder->Send(304, "", "", std::move(headers));
  }
  responder->Send(200, ContentType(file.name), std::string(file.bytes), std::move(headers));
}

}  // namespace

void RegisterWeb(HttpServer* server) {
  for (const EmbeddedFile& file : embedded::server_web::EmbeddedFiles()) {
    NIBBLE_CHECK(!ContentType(file.name).empty());
    const std::string path = file.name == kPage ? "/" : "/web/" + std::string(file.name);
    server->Handle("GET", path,
                   [file](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
                     Answer(file, request, responder.get());
                   });
  }
}

}  // namespace nibble::server
