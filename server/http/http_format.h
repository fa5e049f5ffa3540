// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The bytes of HTTP/1.1 that the server writes itself, and the request target it reads.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "server/http/http_server.h"

namespace nibble::server {

std::string_view ReasonPhrase(int status);

struct ResponseHead {
  int status = 200;
  std::string_view content_type;
  std::optional<size_t> content_length;  // unset: the body has no known length
  bool chunked = false;
  bool close = false;           // "Connection: close"
  bool keep_alive = false;      // "Connection: keep-alive", for HTTP/1.0 clients
  std::string_view request_id;  // x-request-id; empty: none
};

// Status line and headers up to and with the empty line. Control characters in header values become
// spaces, so that a value can never add a header.
std::string FormatResponseHead(const ResponseHead& head, const HttpHeaders& headers);

// Appends one chunk of a chunked body. `data` is not empty: an empty chunk would end the body.
void AppendChunk(std::string_view data, std::string* out);
inline constexpr std::string_view kLastChunk = "0\r\n\r\n";

struct RequestTarget {
  std::string path;  // percent-decoded
  std::string query;
};
// nullopt when the target is neither a path, nor an http URL, nor "*", or has a broken % escape.
std::optional<RequestTarget> ParseRequestTarget(std::string_view target);

}  // namespace nibble::server
