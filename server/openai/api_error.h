// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The OpenAI error object: {"error":{"message","type","param","code"}}.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"
#include "server/admission/request_error.h"
#include "server/http/http_server.h"

namespace nibble::server {

// Error body of a status that is not OK; type and code come from status_map.cc.
std::string ErrorJson(const absl::Status& status);
// Error body for an HTTP status that no absl::Status stands behind (the HTTP server's own errors).
std::string ErrorJson(int http_status, std::string_view message);

// Answers with the status's HTTP status, error body and, where it has one, Retry-After.
void SendError(HttpResponder* responder, const absl::Status& status, HttpHeaders headers = {});

}  // namespace nibble::server
