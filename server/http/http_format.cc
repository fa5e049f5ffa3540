// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/http/http_format.h"

#include <array>
#include <ctime>

#include "fmt/core.h"

namespace nibble::server {
namespace {

// Written by hand: strftime follows the locale, and the header may not.
std::string HttpDate() {
  constexpr std::array<const char*, 7> kDays = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
  constexpr std::array<const char*, 12> kMonths = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                                   "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  const std::time_t now = std::time(nullptr);
  std::tm tm = {};
  gmtime_r(&now, &tm);
  return fmt::format(
      "{}, {:02} {} {} {:02}:{:02}:{:02} GMT", kDays[static_cast<size_t>(tm.tm_wday)], tm.tm_mday,
      kMonths[static_cast<size_t>(tm.tm_mon)], tm.tm_year + 1900, tm.tm_hour, tm.tm_min, tm.tm_sec);
}

void AppendHeader(std::string_view name, std::string_view value, std::string* out) {
  out->append(name).append(": ");
  for (const char c : value) {
    const auto byte = static_cast<unsigned char>(c);
    out->push_back((byte < 0x20 && c != '\t') || byte == 0x7f ? ' ' : c);
  }
  out->append("\r\n");
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

std::string_view ReasonPhrase(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 204:
      return "No Content";
    case 304:
      return "Not Modified";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 409:
      return "Conflict";
    case 413:
      return "Content Too Large";
    case 415:
      return "Unsupported Media Type";
    case 417:
      return "Expectation Failed";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 499:
      return "Client Closed Request";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    case 505:
      return "HTTP Version Not Supported";
    default:
      return "Unknown";
  }
}

std::string FormatResponseHead(const ResponseHead& head, const HttpHeaders& headers) {
  std::string out = fmt::format("HTTP/1.1 {} {}\r\n", head.status, ReasonPhrase(head.status));
  AppendHeader("Date", HttpDate(), &out);
  AppendHeader("Server", "nibble", &out);
  if (!head.content_type.empty()) AppendHeader("Content-Type", head.content_type, &out);
  if (head.content_length.has_value()) {
    AppendHeader("Content-Length", std::to_string(*head.content_length), &out);
  }
  if (head.chunked) AppendHeader("Transfer-Encoding", "chunked", &out);
  if (head.close) AppendHeader("Connection", "close", &out);
  if (head.keep_alive) AppendHeader("Connection", "keep-alive", &out);
  if (!head.request_id.empty()) AppendHeader("x-request-id", head.request_id, &out);
  for (const auto& [name, value] : headers) AppendHeader(name, value, &out);
  out.append("\r\n");
  return out;
}

void AppendChunk(std::string_view data, std::string* out) {
  fmt::format_to(std::back_inserter(*out), "{:x}\r\n", data.size());
  out->append(data).append("\r\n");
}

std::optional<RequestTarget> ParseRequestTarget(std::string_view target) {
  if (target == "*") return RequestTarget{"*", ""};
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (target.substr(0, scheme.size()) != scheme) continue;
    const size_t slash = target.find('/', scheme.size());
    target = slash == std::string_view::npos ? "/" : target.substr(slash);
    break;
  }
  if (target.empty() || target.front() != '/') return std::nullopt;
  RequestTarget result;
  const size_t question = target.find('?');
  if (question != std::string_view::npos) result.query = target.substr(question + 1);
  const std::string_view path = target.substr(0, question);
  for (size_t i = 0; i < path.size(); ++i) {
    if (path[i] != '%') {
      result.path.push_back(path[i]);
      continue;
    }
    if (i + 2 >= path.size()) return std::nullopt;
    const int high = HexDigit(path[i + 1]);
    const int low = HexDigit(path[i + 2]);
    if (high < 0 || low < 0) return std::nullopt;
    result.path.push_back(static_cast<char>(high * 16 + low));
    i += 2;
  }
  return result;
}

}  // namespace nibble::server
