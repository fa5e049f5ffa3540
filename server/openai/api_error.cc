// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/openai/api_error.h"

#include <utility>

#include "server/openai/sse_writer.h"
#include "server/status_map.h"

namespace nibble::server {
namespace {

std::string Body(std::string_view message, std::string_view type, std::string_view param,
                 std::string_view code) {
  const auto append_or_null = [](std::string_view text, std::string* out) {
    if (text.empty()) {
      out->append("null");
    } else {
      AppendJsonString(text, out);
    }
  };
  std::string out = "{\"error\":{\"message\":";
  AppendJsonString(message, &out);
  out.append(",\"type\":");
  AppendJsonString(type, &out);
  out.append(",\"param\":");
  append_or_null(param, &out);
  out.append(",\"code\":");
  append_or_null(code, &out);
  out.append("}}");
  return out;
}

}  // namespace

std::string ErrorJson(const absl::Status& status) {
  const StatusMapping& mapping = MapStatus(status.code());
  return Body(std::string(status.message()), mapping.openai_type, ParamOf(status),
              mapping.openai_code);
}

std::string ErrorJson(int http_status, std::string_view message) {
  const StatusMapping& mapping =
      MapStatus(http_status == 401   ? absl::StatusCode::kUnauthenticated
                : http_status == 403 ? absl::StatusCode::kPermissionDenied
                : http_status == 503 ? absl::StatusCode::kUnavailable
                : http_status >= 500 ? absl::StatusCode::kInternal
                                     : absl::StatusCode::kInvalidArgument);
  return Body(message, mapping.openai_type, "", mapping.openai_code);
}

void SendError(HttpResponder* responder, const absl::Status& status, HttpHeaders headers) {
  const StatusMapping& mapping = MapStatus(status.code());
  if (mapping.retry_after_seconds > 0) {
    headers.emplace_back("Retry-After", std::to_string(mapping.retry_after_seconds));
  }
  responder->Send(mapping.http_status, "application/json", ErrorJson(status), std::move(headers));
}

}  // namespace nibble::server
